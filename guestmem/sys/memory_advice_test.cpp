// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/memory_advice.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/mapping.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/guest_pages.hpp"

namespace guestmem {
namespace {

using testing::for_each_fault;
using testing::GuestPages;
using ::testing::HasSubstr;
using testing::PageAccess;

constexpr Advice all_advice[] = {Advice::mergeable,    Advice::unmergeable, Advice::dont_dump,
                                 Advice::do_dump,      Advice::dont_fork,   Advice::huge_pages,
                                 Advice::no_huge_pages};

std::span<std::byte> bytes_of(const GuestPages& pages) { return {pages.data(), pages.size_bytes()}; }

/// How many of these pages are in memory, by mincore(2): for memory that is nobody's file, those that were given.
std::size_t count_resident(std::span<std::byte> bytes) {
    std::vector<unsigned char> pages(bytes.size() / GuestPages::page_bytes());
    EXPECT_EQ(::mincore(bytes.data(), bytes.size(), pages.data()), 0);
    return static_cast<std::size_t>(
        std::ranges::count_if(pages, [](unsigned char p) { return (p & 1) != 0; }));
}

/// Whether the mapping at `at` has this flag among the VmFlags of /proc/self/smaps.
bool has_flag(const std::byte* at, const std::string& flag) {
    const auto address = reinterpret_cast<std::uintptr_t>(at);
    std::ifstream maps{"/proc/self/smaps"};
    bool is_here = false;
    for (std::string line; std::getline(maps, line);) {
        unsigned long long first = 0;
        unsigned long long past = 0;
        if (std::sscanf(line.c_str(), "%llx-%llx ", &first, &past) == 2)
            is_here = address >= first && address < past;
        if (is_here && line.starts_with("VmFlags:")) return (line + " ").contains(" " + flag + " ");
    }
    return false;
}

/// Whether madvise(2) is the kernel's: qemu-user takes any advice, one that nobody knows too, and does nothing.
bool is_emulated() {
    constexpr int nobody_knows = 9999;
    return ::madvise(nullptr, 0, nobody_knows) == 0;
}

/// Why there is nothing to populate here, or nothing.
std::string why_no_populate() {
    if (is_emulated()) return "SKIPPED: madvise(2) is emulated";
    return ::madvise(nullptr, 0, MADV_POPULATE_WRITE) == 0 ? "" : "SKIPPED: no MADV_POPULATE_WRITE";
}

TEST(Advise, IsSeenInTheMappingsFlags) {
    const GuestPages pages{4};
    ASSERT_TRUE(advise(bytes_of(pages), Advice::dont_dump));
    ASSERT_TRUE(advise(bytes_of(pages), Advice::dont_fork));
    if (!has_flag(pages.data(), "dd")) GTEST_SKIP() << "SKIPPED: no VmFlags in /proc/self/smaps";
    EXPECT_TRUE(has_flag(pages.data(), "dc"));
    ASSERT_TRUE(advise(bytes_of(pages), Advice::do_dump));
    EXPECT_FALSE(has_flag(pages.data(), "dd"));
}

TEST(Advise, EachIsTakenOrUnsupported) {
    const GuestPages pages{4};
    for (const Advice advice : all_advice) {
        const auto advised = advise(bytes_of(pages), advice);
        if (!advised) {
            EXPECT_EQ(advised.error().code(), Errc::unsupported) << static_cast<int>(advice);
        }
    }
}

TEST(Advise, TakesTheLastPageWhole) {
    const GuestPages pages{4};
    EXPECT_TRUE(advise(bytes_of(pages).first(GuestPages::page_bytes() + 1), Advice::dont_dump));
}

TEST(Advise, NoBytesAreNoWork) {
    for (const Advice advice : all_advice) {
        const FaultInjector injector{0};
        EXPECT_TRUE(advise({}, advice));
        EXPECT_FALSE(injector.has_fired());
    }
}

TEST(Advise, BytesThatBeginWithinAPageAreRefused) {
    const GuestPages pages{4};
    for (const Advice advice : all_advice) {
        const auto advised = advise(bytes_of(pages).subspan(1), advice);
        ASSERT_FALSE(advised);
        EXPECT_EQ(advised.error().code(), Errc::invalid_argument);
        EXPECT_THAT(advised.error().message(), HasSubstr("begins within a page"));
    }
}

TEST(Advise, AHoleKeepsItsErrno) {
    if (is_emulated()) GTEST_SKIP() << "SKIPPED: madvise(2) is emulated";
    const GuestPages pages{4};
    ASSERT_EQ(::munmap(pages.page(1), GuestPages::page_bytes()), 0);
    const auto advised = advise(bytes_of(pages), Advice::dont_dump);
    ASSERT_FALSE(advised);
    EXPECT_EQ(advised.error().os_error(), ENOMEM);
}

TEST(Advise, ACallThatFailsIsAnError) {
    const GuestPages pages{4};
    for (const Advice advice : {Advice::dont_dump, Advice::do_dump, Advice::dont_fork})
        EXPECT_EQ(for_each_fault([&] { return advise(bytes_of(pages), advice); }), 1U);
}

TEST(PopulateWrite, GivesEveryPageAndChangesNoByte) {
    if (const std::string why = why_no_populate(); !why.empty()) GTEST_SKIP() << why;
    const GuestPages pages{8};
    pages.page(3)[5] = std::byte{7};
    ASSERT_EQ(count_resident(bytes_of(pages)), 1U);

    ASSERT_TRUE(populate_write(bytes_of(pages)));

    EXPECT_EQ(count_resident(bytes_of(pages)), 8U);
    EXPECT_EQ(pages.page(3)[5], std::byte{7});
    EXPECT_EQ(pages.page(7)[0], std::byte{0});
}

TEST(PopulateWrite, OnAKernelThatCannotIsUnsupported) {
    const GuestPages pages{1};
    const FaultInjector injector{0, {.only = SysCall::madvise, .os_error = EINVAL, .repeat = 2}};
    const auto populated = populate_write(bytes_of(pages));
    ASSERT_FALSE(populated);
    EXPECT_EQ(populated.error().code(), Errc::unsupported);
    EXPECT_EQ(populated.error().os_error(), EINVAL);
}

TEST(PopulateWrite, OfMemoryThatMayNotBeWrittenIsInvalidAndNotUnsupported) {
    if (const std::string why = why_no_populate(); !why.empty()) GTEST_SKIP() << why;
    const GuestPages pages{2};
    pages.protect(1, PageAccess::read_only);
    const auto populated = populate_write(bytes_of(pages));
    ASSERT_FALSE(populated);
    EXPECT_EQ(populated.error().code(), Errc::invalid_argument);
}

TEST(PopulateWrite, PastTheEndOfAFileKeepsItsErrno) {
    if (const std::string why = why_no_populate(); !why.empty()) GTEST_SKIP() << why;
    const Fd file{::memfd_create("short", MFD_CLOEXEC)};
    const std::uint64_t page = GuestPages::page_bytes();
    ASSERT_TRUE(resize_file(file, page));
    const Mapping mapping =
        Mapping::create(file, MappingOptions{.size_bytes = 2 * page, .may_exceed_file = true}).value();
    for (const auto populate : {&populate_write, &populate_read}) {
        const auto populated = populate(mapping.bytes());
        ASSERT_FALSE(populated);
        EXPECT_EQ(populated.error().os_error(), EFAULT);
    }
    EXPECT_TRUE(populate_write(mapping.bytes().first(page)));
}

TEST(PopulateWrite, OtherFailuresKeepTheirErrno) {
    const GuestPages pages{1};
    for (const int os_error : {ENOMEM, EFAULT, EHWPOISON}) {
        const FaultInjector injector{0, {.only = SysCall::madvise, .os_error = os_error}};
        const auto populated = populate_write(bytes_of(pages));
        ASSERT_FALSE(populated);
        EXPECT_EQ(populated.error().os_error(), os_error);
        EXPECT_NE(populated.error().code(), Errc::unsupported);
    }
}

TEST(PopulateWrite, ACallThatFailsIsAnError) {
    if (const std::string why = why_no_populate(); !why.empty()) GTEST_SKIP() << why;
    const GuestPages pages{1};
    EXPECT_EQ(for_each_fault([&] { return populate_write(bytes_of(pages)); }), 1U);
    EXPECT_EQ(for_each_fault([&] { return populate_read(bytes_of(pages)); }), 1U);
    EXPECT_TRUE(populate_write({}));
}

TEST(PopulateRead, ReadsMemoryThatMayNotBeWritten) {
    if (const std::string why = why_no_populate(); !why.empty()) GTEST_SKIP() << why;
    const GuestPages pages{4};
    for (std::size_t i = 0; i < 4; ++i) pages.protect(i, PageAccess::read_only);
    ASSERT_TRUE(populate_read(bytes_of(pages)));
    EXPECT_EQ(count_resident(bytes_of(pages)), 4U);
}

TEST(PopulateRead, OfMemoryThatMayNotBeReadIsInvalid) {
    if (const std::string why = why_no_populate(); !why.empty()) GTEST_SKIP() << why;
    const GuestPages pages{1};
    pages.protect(0, PageAccess::none);
    EXPECT_EQ(populate_read(bytes_of(pages)).error().code(), Errc::invalid_argument);
}

TEST(DiscardPages, OfPrivateMemoryAreZerosAtTheNextTouch) {
    const GuestPages pages{3};
    for (std::size_t i = 0; i < 3; ++i) pages.page(i)[0] = std::byte{9};
    ASSERT_TRUE(discard_pages(bytes_of(pages).subspan(GuestPages::page_bytes(), GuestPages::page_bytes())));
    EXPECT_EQ(count_resident(bytes_of(pages)), 2U);
    EXPECT_EQ(pages.page(0)[0], std::byte{9});
    EXPECT_EQ(pages.page(1)[0], std::byte{0});
    EXPECT_EQ(pages.page(2)[0], std::byte{9});
}

TEST(DiscardPages, OfSharedMemoryStayInTheFile) {
    const Fd file{::memfd_create("kept", MFD_CLOEXEC)};
    const std::uint64_t page = GuestPages::page_bytes();
    ASSERT_TRUE(resize_file(file, page));
    const Mapping mapping = Mapping::create(file, page, MapAccess::read_write).value();
    mapping.bytes()[0] = std::byte{9};
    ASSERT_TRUE(discard_pages(mapping.bytes()));
    EXPECT_EQ(mapping.bytes()[0], std::byte{9});
}

TEST(DiscardPages, TakesWholePagesOnly) {
    const GuestPages pages{2};
    const std::size_t page = GuestPages::page_bytes();
    pages.page(1)[0] = std::byte{9};
    for (const auto verb : {&discard_pages, &remove_pages}) {
        EXPECT_EQ(verb(bytes_of(pages).first(page + 1)).error().code(), Errc::invalid_argument);
        EXPECT_EQ(verb(bytes_of(pages).subspan(1, page)).error().code(), Errc::invalid_argument);
        EXPECT_EQ(verb(bytes_of(pages).first(1)).error().code(), Errc::invalid_argument);
        EXPECT_TRUE(verb({}));
    }
    EXPECT_EQ(pages.page(1)[0], std::byte{9});
    EXPECT_EQ(for_each_fault([&] { return discard_pages(bytes_of(pages)); }), 1U);
}

TEST(UnlockPages, LetsLockedPagesBeDiscarded) {
    if (is_emulated()) GTEST_SKIP() << "SKIPPED: madvise(2) is emulated";
    const GuestPages pages{2};
    pages.page(0)[0] = std::byte{9};
    if (::mlock(pages.data(), pages.size_bytes()) != 0) GTEST_SKIP() << "SKIPPED: no pages may be locked";
    const auto refused = discard_pages(bytes_of(pages));
    if (refused) GTEST_SKIP() << "SKIPPED: a sanitizer makes mlock(2) do nothing";
    EXPECT_EQ(refused.error().code(), Errc::invalid_argument);
    unlock_pages(bytes_of(pages));
    unlock_pages({});
    EXPECT_TRUE(discard_pages(bytes_of(pages)));
    EXPECT_EQ(pages.page(0)[0], std::byte{0});
}

TEST(RemovePages, AreAHoleInTheFileForAll) {
    if (is_emulated()) GTEST_SKIP() << "SKIPPED: madvise(2) is emulated";
    const Fd file{::memfd_create("removed", MFD_CLOEXEC)};
    const std::uint64_t page = GuestPages::page_bytes();
    ASSERT_TRUE(allocate_file(file, 0, 2 * page));
    const Mapping mapping = Mapping::create(file, 2 * page, MapAccess::read_write).value();
    const Mapping other = Mapping::create(file, 2 * page, MapAccess::read_only).value();
    mapping.bytes()[0] = std::byte{9};
    mapping.bytes()[page] = std::byte{9};

    ASSERT_TRUE(remove_pages(mapping.bytes().first(page)));

    EXPECT_EQ(other.bytes()[0], std::byte{0});
    EXPECT_EQ(other.bytes()[page], std::byte{9});
    EXPECT_EQ(file_facts(file)->size_bytes, 2 * page);
    EXPECT_EQ(for_each_fault([&] { return remove_pages(mapping.bytes()); }), 1U);
}

TEST(RemovePages, OfPrivateMemoryIsAnErrorAndNotUnsupported) {
    if (is_emulated()) GTEST_SKIP() << "SKIPPED: madvise(2) is emulated";
    const GuestPages pages{1};
    const auto removed = remove_pages(bytes_of(pages));
    ASSERT_FALSE(removed);
    EXPECT_NE(removed.error().code(), Errc::unsupported);
}

}  // namespace
}  // namespace guestmem
