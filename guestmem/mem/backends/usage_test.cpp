// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/backends/usage.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdint>
#include <fstream>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/backends/option_text.hpp"
#include "guestmem/mem/backends/testing/child.hpp"
#include "guestmem/mem/backends/testing/host_pages.hpp"
#include "guestmem/mem/layout.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using namespace testing;  // NOLINT(google-build-using-namespace): the words of tests

constexpr std::uint64_t page = page_size_bytes;
constexpr std::uint64_t mib = std::uint64_t{1} << 20;
constexpr std::uint64_t no_more = std::numeric_limits<std::uint64_t>::max();

std::shared_ptr<const Backend> made(const std::string& text) {
    auto backend = Backend::create(parse_backend(text).value());
    EXPECT_TRUE(backend) << (backend ? "" : backend.error().message());
    return *backend;
}

/// A backend in small pages: where the host makes huge ones by itself, one touched byte is 2 MiB.
std::shared_ptr<const Backend> made_small(const std::string& text) {
    auto backend = made(text);
    const auto bytes = backend->memory()->bytes();
    EXPECT_EQ(::madvise(bytes.data(), bytes.size(), MADV_NOHUGEPAGE), 0);
    return backend;
}

std::span<std::byte> bytes_of(const std::shared_ptr<const Backend>& backend) {
    return backend->memory()->bytes();
}

void write_pages(std::span<std::byte> bytes, std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t number = first; number < first + count; ++number) {
        auto* const byte = reinterpret_cast<volatile unsigned char*>(bytes.data() + number * page);
        *byte = 1;
    }
}
void read_pages(std::span<std::byte> bytes, std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t number = first; number < first + count; ++number)
        static_cast<void>(*reinterpret_cast<volatile unsigned char*>(bytes.data() + number * page));
}

/// Backends keep their memory out of children.
void give_to_children(std::span<std::byte> bytes) {
    ASSERT_EQ(::madvise(bytes.data(), bytes.size(), MADV_DOFORK), 0);
}

template <typename Memory>
MemoryUsage usage(const Memory& memory) {
    const auto found = usage_of(memory);
    EXPECT_TRUE(found) << (found ? "" : found.error().message());
    if (!found) return {};
    // What holds of everything that is not swapped.
    EXPECT_EQ(found->resident_bytes, found->shared_bytes + found->private_bytes);
    EXPECT_EQ(found->resident_bytes, found->file_bytes + found->anonymous_bytes);
    if (found->is_exact) {
        EXPECT_EQ(found->mapped_bytes,
                  found->resident_bytes + found->swapped_bytes + found->untouched_bytes());
    }
    return *found;
}

TEST(Usage, OfUntouchedMemoryIsMappedAndNothingElse) {
    for (const char* text :
         {"memory-backend-ram,id=m,size=1M", "memory-backend-memfd,id=m,size=1M",
          "memory-backend-memfd,id=m,size=1M,share=off", "memory-backend-shm,id=m,size=1M"}) {
        SCOPED_TRACE(text);
        EXPECT_EQ(usage(*made(text)), MemoryUsage{.mapped_bytes = mib});
    }
}

TEST(Usage, OfPrivateMemoryCountsTheWrittenPages) {
    const auto backend = made_small("memory-backend-ram,id=m,size=1M");
    write_pages(bytes_of(backend), 3, 5);
    // The first pages are read: what they show is nobody's page.
    read_pages(bytes_of(backend), 0, 2);
    EXPECT_EQ(usage(*backend), (MemoryUsage{.mapped_bytes = mib,
                                            .resident_bytes = 5 * page,
                                            .private_bytes = 5 * page,
                                            .proportional_bytes = 5 * page,
                                            .anonymous_bytes = 5 * page}));
    EXPECT_EQ(usage(*backend).untouched_bytes(), mib - 5 * page);
}

TEST(Usage, OfSharedMemoryThatNobodyElseMapsIsPrivate) {
    for (const char* text : {"memory-backend-memfd,id=m,size=1M", "memory-backend-shm,id=m,size=1M",
                             "memory-backend-ram,id=m,size=1M,share=on"}) {
        SCOPED_TRACE(text);
        const auto backend = made_small(text);
        write_pages(bytes_of(backend), 0, 4);
        EXPECT_EQ(usage(*backend), (MemoryUsage{.mapped_bytes = mib,
                                                .resident_bytes = 4 * page,
                                                .private_bytes = 4 * page,
                                                .proportional_bytes = 4 * page,
                                                .file_bytes = 4 * page}));
    }
}

TEST(Usage, OfAMemfdThatAChildTouchesTooTellsSharedFromPrivate) {
    const auto backend = made_small("memory-backend-memfd,id=m,size=1M");
    give_to_children(bytes_of(backend));
    write_pages(bytes_of(backend), 0, 6);
    in_child([&] {
        // A child begins with no pages of a shared mapping: it has those that it touches.
        write_pages(bytes_of(backend), 4, 4);
        EXPECT_EQ(usage(*backend), (MemoryUsage{.mapped_bytes = mib,
                                                .resident_bytes = 4 * page,
                                                .shared_bytes = 2 * page,
                                                .private_bytes = 2 * page,
                                                .proportional_bytes = 3 * page,
                                                .file_bytes = 4 * page}));
    });
    EXPECT_EQ(usage(*backend).resident_bytes, 6 * page);
    EXPECT_EQ(usage(*backend).private_bytes, 6 * page);
}

TEST(Usage, OfPrivateMemoryIsSharedWithAChildUntilOneWrites) {
    const auto backend = made_small("memory-backend-ram,id=m,size=1M");
    give_to_children(bytes_of(backend));
    write_pages(bytes_of(backend), 0, 6);
    in_child([&] {
        write_pages(bytes_of(backend), 0, 2);
        const MemoryUsage found = usage(*backend);
        EXPECT_EQ(found.resident_bytes, 6 * page);
        EXPECT_EQ(found.shared_bytes, 4 * page);
        EXPECT_EQ(found.private_bytes, 2 * page);
        EXPECT_EQ(found.proportional_bytes, 4 * page);
    });
}

TEST(Usage, OfAPrivateFileTellsItsCopiesFromTheFilesPages) {
    const TempFolder folder;
    const std::string path = folder.write("ram", std::string(64 * page, 'x'));
    const auto backend =
        made("memory-backend-file,id=m,size=256K,share=off,readonly=on,rom=off,mem-path=" + path);
    write_pages(bytes_of(backend), 10, 3);
    EXPECT_EQ(usage(*backend).anonymous_bytes, 3 * page);
    read_pages(bytes_of(backend), 0, 64);
    const MemoryUsage found = usage(*backend);
    EXPECT_EQ(found.resident_bytes, 64 * page);
    EXPECT_EQ(found.anonymous_bytes, 3 * page);
    EXPECT_EQ(found.file_bytes, 61 * page);
    EXPECT_EQ(found.untouched_bytes(), 0U);
}

TEST(Usage, OfAReadOnlyFileIsOfTheFileAndSharedByTwoMappings) {
    const TempFolder folder;
    const std::string path = folder.write("ram", std::string(16 * page, 'x'));
    const std::string text = "memory-backend-file,id=m,size=64K,share=on,readonly=on,mem-path=" + path;
    const auto one = made(text);
    read_pages(bytes_of(one), 0, 16);
    EXPECT_EQ(usage(*one).private_bytes, 16 * page);
    const auto other = made(text);
    read_pages(bytes_of(other), 0, 16);
    const MemoryUsage found = usage(*one);
    EXPECT_EQ(found.file_bytes, 16 * page);
    EXPECT_EQ(found.shared_bytes, 16 * page);
    EXPECT_EQ(found.proportional_bytes, 8 * page);
}

TEST(Usage, OfHugePagesCountsWhatTheKernelLeavesOutOfRss) {
    const HugePages huge_pages{4};
    if (!huge_pages.is_there()) GTEST_SKIP() << "SKIPPED: this machine has no huge pages to give";
    const std::string text = "memory-backend-memfd,id=m,size=6M,hugetlb=on,hugetlbsize=2M";
    const auto shared = made(text);
    write_pages(bytes_of(shared), 0, 1);
    EXPECT_EQ(usage(*shared), (MemoryUsage{.mapped_bytes = 6 * mib,
                                           .resident_bytes = 2 * mib,
                                           .private_bytes = 2 * mib,
                                           .proportional_bytes = 2 * mib,
                                           .huge_bytes = 2 * mib,
                                           .file_bytes = 2 * mib}));
    give_to_children(bytes_of(shared));
    in_child([&] {
        write_pages(bytes_of(shared), 0, 513);
        const MemoryUsage found = usage(*shared);
        EXPECT_EQ(found.resident_bytes, 4 * mib);
        EXPECT_EQ(found.shared_bytes, 2 * mib);
    });
}

TEST(Usage, OfPrivateHugePagesIsAnonymous) {
    const HugePages huge_pages{2};
    if (!huge_pages.is_there()) GTEST_SKIP() << "SKIPPED: this machine has no huge pages to give";
    const auto backend = made("memory-backend-memfd,id=m,size=4M,hugetlb=on,hugetlbsize=2M,share=off");
    write_pages(bytes_of(backend), 512, 1);
    const MemoryUsage found = usage(*backend);
    EXPECT_EQ(found.anonymous_bytes, 2 * mib);
    EXPECT_EQ(found.huge_bytes, 2 * mib);
    EXPECT_TRUE(found.is_exact);
}

TEST(Usage, OfTransparentHugePagesCountsThemAsHuge) {
    const auto backend = made("memory-backend-ram,id=m,size=8M");
    const auto bytes = bytes_of(backend);
    if (::madvise(bytes.data(), bytes.size(), MADV_HUGEPAGE) != 0)
        GTEST_SKIP() << "SKIPPED: this kernel has no transparent huge pages";
    write_pages(bytes, 0, bytes.size() / page);
    const MemoryUsage found = usage(*backend);
    EXPECT_EQ(found.resident_bytes, 8 * mib);
    if (found.huge_bytes == 0) GTEST_SKIP() << "SKIPPED: this host gave no transparent huge pages";
    EXPECT_EQ(found.huge_bytes % (2 * mib), 0U);
    EXPECT_LE(found.huge_bytes, 8 * mib);
}

TEST(Usage, OfWhatIsSwappedOutIsNotResident) {
    std::ifstream swaps{"/proc/swaps"};
    std::string line;
    std::getline(swaps, line);  // the heads of the columns
    if (!std::getline(swaps, line)) GTEST_SKIP() << "SKIPPED: this host has no swap";
    const auto backend = made_small("memory-backend-ram,id=m,size=1M");
    const auto bytes = bytes_of(backend);
    write_pages(bytes, 0, 8);
    if (::madvise(bytes.data(), bytes.size(), MADV_PAGEOUT) != 0)
        GTEST_SKIP() << "SKIPPED: this kernel does not page out when asked";
    const MemoryUsage found = usage(*backend);
    EXPECT_EQ(found.resident_bytes + found.swapped_bytes, 8 * page);
    EXPECT_EQ(found.untouched_bytes(), mib - 8 * page);
}

TEST(Usage, OfASizeOfNoWholePagesIsInWholePages) {
    const auto memory = HostMemory::create_anonymous({.size_bytes = page + 1}).value();
    write_pages(memory->bytes(), 1, 1);
    EXPECT_EQ(usage(*memory), (MemoryUsage{.mapped_bytes = 2 * page,
                                           .resident_bytes = page,
                                           .private_bytes = page,
                                           .proportional_bytes = page,
                                           .anonymous_bytes = page}));
}

TEST(Usage, OfNeighborsIsToldApartByTheirGuards) {
    std::vector<std::shared_ptr<const HostMemory>> all;
    for (std::uint64_t count = 1; count <= 20; ++count) {
        all.push_back(HostMemory::create_anonymous({.size_bytes = 32 * page}).value());
        write_pages(all.back()->bytes(), 0, count);
    }
    for (std::uint64_t count = 1; count <= 20; ++count) {
        const MemoryUsage found = usage(*all[count - 1]);
        EXPECT_TRUE(found.is_exact);
        EXPECT_EQ(found.mapped_bytes, 32 * page);
        EXPECT_EQ(found.resident_bytes, count * page);
    }
}

TEST(Usage, OfAMappingThatAdviceHasSplitIsAddedUp) {
    const auto backend = made_small("memory-backend-ram,id=m,size=1M");
    const auto bytes = bytes_of(backend);
    ASSERT_EQ(::madvise(bytes.data() + 8 * page, 8 * page, MADV_DONTDUMP), 0);
    write_pages(bytes, 0, 20);
    const MemoryUsage found = usage(*backend);
    EXPECT_TRUE(found.is_exact);
    EXPECT_EQ(found.mapped_bytes, mib);
    EXPECT_EQ(found.resident_bytes, 20 * page);
}

TEST(Usage, OfAPartOfSomebodysMappingIsAtMostThatPart) {
    const auto whole = made_small("memory-backend-ram,id=m,size=1M");
    write_pages(bytes_of(whole), 0, 12);
    const auto part =
        HostMemory::borrow(bytes_of(whole).subspan(4 * page, 8 * page), MapAccess::read_write, whole).value();
    const MemoryUsage found = *usage_of(*part);
    EXPECT_FALSE(found.is_exact);
    EXPECT_EQ(found.mapped_bytes, 8 * page);
    EXPECT_EQ(found.resident_bytes, 8 * page);
    EXPECT_EQ(found.private_bytes, 8 * page);
    const auto all = HostMemory::borrow(bytes_of(whole), MapAccess::read_write, whole).value();
    EXPECT_EQ(usage(*all), usage(*whole));
}

TEST(Usage, OfAMapCountsMemoryThatSeveralRegionsShowOnce) {
    const auto first = made_small("memory-backend-ram,id=a,size=1M");
    const auto second = made_small("memory-backend-memfd,id=b,size=1M");
    write_pages(bytes_of(first), 0, 3);
    write_pages(bytes_of(second), 0, 4);
    const auto region = [](const char* name, std::uint64_t base, std::shared_ptr<const HostMemory> memory,
                           std::uint64_t offset) {
        return Region::create({.name = name,
                               .base = GuestAddress{base},
                               .size_bytes = mib / 2,
                               .memory = std::move(memory),
                               .memory_offset_bytes = offset})
            .value();
    };
    Layout layout;
    layout.add(region("low", 0, first->memory(), 0));
    layout.add(region("high", 4 * mib, first->memory(), mib / 2));
    layout.add(region("alias", 8 * mib, first->memory(), mib / 4));
    layout.add(region("other", 12 * mib, second->memory(), 0));
    layout.add(Region::create({.name = "device",
                               .base = GuestAddress{16 * mib},
                               .size_bytes = page,
                               .kind = RegionKind::device})
                   .value());
    const auto map = std::move(layout).freeze().value();

    MemoryUsage wanted = usage(*first);
    wanted.add(usage(*second));
    EXPECT_EQ(usage(*map), wanted);
    EXPECT_EQ(wanted.mapped_bytes, 2 * mib);
    EXPECT_EQ(wanted.resident_bytes, 7 * page);
    EXPECT_TRUE(wanted.is_exact);
}

TEST(Usage, AnyCallThatFailsIsAnError) {
    const auto backend = made("memory-backend-ram,id=m,size=1M");
    EXPECT_GT(for_each_fault([&] { return usage_of(*backend); }), 2U);
    const auto map = [&] {
        Layout layout;
        layout.add(backend->make_region(GuestAddress{0}).value());
        return std::move(layout).freeze().value();
    }();
    EXPECT_GT(for_each_fault([&] { return usage_of(*map); }), 2U);
}

/// `count_pages` pages from the page on, all of them resident.
ProcessMapping full(std::uint64_t first_page, std::uint64_t count_pages) {
    ProcessMapping mapping;
    mapping.base = first_page * page;
    mapping.size_bytes = count_pages * page;
    mapping.page_bytes = page;
    mapping.resident_bytes = mapping.private_clean_bytes = mapping.size_bytes;
    return mapping;
}

TEST(UsageOfRanges, OfNothingIsNothing) {
    const std::vector<ProcessMapping> mappings{full(1, 4)};
    EXPECT_EQ(usage_of(std::span<const HostRange>{}, mappings), MemoryUsage{});
    const std::vector<HostRange> ranges{{.base = page, .size_bytes = 0},
                                        {.base = 100 * page, .size_bytes = page}};
    EXPECT_EQ(usage_of(ranges, mappings), MemoryUsage{});
    EXPECT_EQ(usage_of(ranges, {}), MemoryUsage{});
}

TEST(UsageOfRanges, TwoRangesInOnePageCountItOnce) {
    const std::vector<HostRange> ranges{{.base = page + 10, .size_bytes = 1},
                                        {.base = page + 20, .size_bytes = 1}};
    const std::vector<ProcessMapping> two{full(1, 2)};
    EXPECT_EQ(usage_of(ranges, two).mapped_bytes, page);
    EXPECT_FALSE(usage_of(ranges, two).is_exact);
    const std::vector<ProcessMapping> one{full(1, 1)};
    EXPECT_TRUE(usage_of(ranges, one).is_exact);
}

TEST(UsageOfRanges, AHugePageCountsWhole) {
    ProcessMapping mapping = full(512, 512);
    mapping.page_bytes = 2 * mib;
    mapping.resident_bytes = mapping.private_clean_bytes = 0;
    mapping.private_hugetlb_bytes = 2 * mib;
    const HostRange range{.base = 2 * mib, .size_bytes = 3};
    const MemoryUsage found = usage_of(std::span{&range, 1}, std::span{&mapping, 1});
    EXPECT_TRUE(found.is_exact);
    EXPECT_EQ(found.mapped_bytes, 2 * mib);
    EXPECT_EQ(found.resident_bytes, 2 * mib);
}

TEST(UsageOfRanges, TheLastAddressesDoNotWrap) {
    ProcessMapping mapping = full(1, 1);
    mapping.base = no_more - (2 * page - 1);
    mapping.size_bytes = 2 * page;
    const std::vector<HostRange> ranges{{.base = no_more - 1, .size_bytes = no_more},
                                        {.base = 0, .size_bytes = 1}};
    EXPECT_EQ(usage_of(ranges, std::span{&mapping, 1}).mapped_bytes, page);
    const std::vector<HostRange> all{{.base = 0, .size_bytes = no_more}, {.base = no_more, .size_bytes = 1}};
    EXPECT_EQ(usage_of(all, std::span{&mapping, 1}).mapped_bytes, 2 * page);
    const HostRange wrapping{.base = mapping.base, .size_bytes = no_more};
    EXPECT_EQ(usage_of(std::span{&wrapping, 1}, std::span{&mapping, 1}).mapped_bytes, 2 * page);
}

TEST(UsageOfRanges, TwoPartsOfTheLastHugePageCountItOnce) {
    ProcessMapping mapping = full(1, 1);
    mapping.base = no_more - (2 * mib - 1);
    mapping.size_bytes = mapping.page_bytes = 2 * mib;
    const std::vector<HostRange> ranges{{.base = mapping.base, .size_bytes = 1},
                                        {.base = mapping.base + mib, .size_bytes = 1}};
    const MemoryUsage found = usage_of(ranges, std::span{&mapping, 1});
    EXPECT_EQ(found.mapped_bytes, 2 * mib);
    EXPECT_TRUE(found.is_exact);
}

TEST(UsageOfRanges, HostileFiguresStopAtTheLargest) {
    ProcessMapping mapping = full(1, 1);
    for (const auto member : {&ProcessMapping::resident_bytes, &ProcessMapping::shared_clean_bytes,
                              &ProcessMapping::shared_dirty_bytes, &ProcessMapping::shared_hugetlb_bytes,
                              &ProcessMapping::private_hugetlb_bytes, &ProcessMapping::anonymous_bytes,
                              &ProcessMapping::swapped_bytes, &ProcessMapping::proportional_bytes})
        mapping.*member = no_more - 1;
    MemoryUsage found = usage_of(mapping);
    EXPECT_EQ(found.resident_bytes, no_more);
    EXPECT_EQ(found.shared_bytes, no_more);
    EXPECT_EQ(found.untouched_bytes(), 0U);
    mapping.anonymous_bytes = no_more;
    mapping.shared_hugetlb_bytes = mapping.private_hugetlb_bytes = 0;
    EXPECT_EQ(usage_of(mapping).file_bytes, 0U);
    found.add(found);
    EXPECT_EQ(found.swapped_bytes, no_more);
    EXPECT_EQ(found.mapped_bytes, 2 * page);
}

/// Random mappings and ranges, against a list of pages.
TEST(UsageOfRanges, AgreesWithCountingPages) {
    constexpr std::uint64_t count_pages = 64;
    const unsigned seed = std::random_device{}();
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random{seed};
    const auto below = [&](std::uint64_t limit) {
        return std::uniform_int_distribution<std::uint64_t>{0, limit - 1}(random);
    };
    for (int round = 0; round < 2000; ++round) {
        std::vector<ProcessMapping> mappings;
        for (std::uint64_t at = below(6); at < count_pages;) {
            mappings.push_back(full(at, 1 + below(10)));
            at = mappings.back().last() / page + 1 + below(3);
        }
        std::vector<HostRange> ranges(below(8));
        std::vector<bool> is_wanted(2 * count_pages);
        for (HostRange& range : ranges) {
            range = {.base = below(count_pages * page), .size_bytes = below(12 * page)};
            if (range.size_bytes == 0) continue;
            for (std::uint64_t at = range.base / page; at <= (range.base + range.size_bytes - 1) / page; ++at)
                is_wanted[at] = true;
        }
        std::uint64_t count = 0;
        bool is_exact = true;
        for (const ProcessMapping& mapping : mappings) {
            std::uint64_t inside = 0;
            for (std::uint64_t at = mapping.base / page; at <= mapping.last() / page; ++at)
                inside += is_wanted[at];
            count += inside;
            is_exact = is_exact && (inside == 0 || inside * page == mapping.size_bytes);
        }
        const MemoryUsage found = usage_of(ranges, mappings);
        ASSERT_EQ(found.mapped_bytes, count * page);
        ASSERT_EQ(found.resident_bytes, count * page);
        ASSERT_EQ(found.is_exact, is_exact);
    }
}

}  // namespace
}  // namespace guestmem
