// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/mapping.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <fstream>
#include <limits>
#include <string>
#include <thread>
#include <type_traits>

#include "guestmem/base/sizes.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/guarded.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/resources.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using testing::for_each_fault;
using testing::Resources;
using testing::TempFolder;

constexpr std::uint64_t two_pages = 8192;

static_assert(!std::is_copy_constructible_v<Mapping>);

Fd some_memory() { return create_sealed_memory({.name = "test", .size_bytes = two_pages}).value(); }

TEST(Mapping, ShowsWhatAnotherMappingOfTheFileWrote) {
    const Fd memory = some_memory();
    const Mapping writer = Mapping::create(memory, two_pages, MapAccess::read_write).value();
    const Mapping reader = Mapping::create(memory, two_pages, MapAccess::read_only).value();

    writer.bytes().front() = std::byte{1};
    writer.bytes().back() = std::byte{2};

    EXPECT_EQ(reader.bytes().size(), two_pages);
    EXPECT_EQ(reader.bytes().front(), std::byte{1});
    EXPECT_EQ(reader.bytes().back(), std::byte{2});
}

TEST(Mapping, OutlivesItsDescriptor) {
    Fd memory = some_memory();
    const Mapping mapping = Mapping::create(memory, two_pages, MapAccess::read_write).value();

    memory.reset();
    mapping.bytes()[4096] = std::byte{9};

    EXPECT_EQ(mapping.bytes()[4096], std::byte{9});
}

TEST(Mapping, EndsWhereTheFileEnds) {
    const Fd memory = some_memory();
    EXPECT_TRUE(Mapping::create(memory, 1, MapAccess::read_only));
    EXPECT_TRUE(Mapping::create(memory, two_pages, MapAccess::read_only));
    for (const std::uint64_t size :
         {std::uint64_t{0}, two_pages + 1, std::numeric_limits<std::uint64_t>::max()}) {
        const auto mapping = Mapping::create(memory, size, MapAccess::read_only);
        ASSERT_FALSE(mapping) << size;
        EXPECT_EQ(mapping.error().code(), Errc::out_of_range) << size;
    }
}

TEST(Mapping, OfAReadOnlyDescriptorIsNotWritable) {
    const TempFolder folder;
    const Fd file = open_file(folder.write("f", "text"), OpenMode::read).value();

    EXPECT_TRUE(Mapping::create(file, 4, MapAccess::read_only));
    const auto writable = Mapping::create(file, 4, MapAccess::read_write);

    ASSERT_FALSE(writable);
    EXPECT_EQ(writable.error().code(), Errc::permission_denied);
}

TEST(Mapping, IsGoneFromTheProcessWhenItGoes) {
    const Fd memory = some_memory();
    const Resources before = Resources::look();
    {
        Mapping first = Mapping::create(memory, two_pages, MapAccess::read_write).value();
        EXPECT_EQ(Resources::look().mappings.size(), before.mappings.size() + 1);
        Mapping second{std::move(first)};
        EXPECT_TRUE(first.bytes().empty());  // NOLINT(bugprone-use-after-move)
        second = Mapping::create(memory, two_pages, MapAccess::read_only).value();
        EXPECT_EQ(Resources::look().mappings.size(), before.mappings.size() + 1);
    }
    EXPECT_EQ(Resources::look(), before);
}

TEST(Mapping, WhateverFailsNothingIsLeft) {
    const Fd memory = some_memory();
    const auto count =
        for_each_fault([&] { return Mapping::create(memory, two_pages, MapAccess::read_write); });
    EXPECT_EQ(count, 4U);  // fstat, F_GETFL, fstatfs, mmap
}

// ------------------------------------------------------------------------- offsets, private copies, guards

bool can_load(const std::byte* at) {
    GM_CHECK(install_fault_guard() && prepare_thread_for_guest_memory());
    std::uint8_t value = 0;
    return try_load(at, value);
}

/// The size of the whole address space: what a guard takes is seen nowhere else.
std::uint64_t virtual_bytes() {
    std::ifstream file{"/proc/self/statm"};
    std::uint64_t pages = 0;
    file >> pages;
    return pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}
// Far above what a heap or a sanitizer takes meanwhile.
constexpr std::uint64_t large_guard = std::uint64_t{16} << 30;
constexpr std::uint64_t small_change = std::uint64_t{4} << 30;

TEST(Mapping, BeginsAtItsOffset) {
    const Fd memory = some_memory();
    const Mapping whole = Mapping::create(memory, two_pages, MapAccess::read_write).value();
    const Mapping second = Mapping::create(memory, {.size_bytes = 4096, .offset_bytes = 4096}).value();

    whole.bytes()[4096] = std::byte{1};
    second.bytes().back() = std::byte{2};

    EXPECT_EQ(second.bytes().front(), std::byte{1});
    EXPECT_EQ(whole.bytes().back(), std::byte{2});
}

TEST(Mapping, AnOffsetIsAMultipleOfThePageSize) {
    const Fd memory = some_memory();
    for (const std::uint64_t offset : {1U, 4095U, 4097U}) {
        const auto mapping = Mapping::create(memory, {.size_bytes = 1, .offset_bytes = offset});
        ASSERT_FALSE(mapping) << offset;
        EXPECT_EQ(mapping.error().code(), Errc::invalid_argument) << offset;
        EXPECT_NE(mapping.error().message().find("page size 4096"), std::string::npos);
    }
}

TEST(Mapping, OffsetAndSizeTogetherStayInsideTheFile) {
    constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
    const Fd memory = some_memory();
    for (const auto& [offset, size] : {std::pair<std::uint64_t, std::uint64_t>{4096, 4097},
                                       {two_pages, 1},
                                       {4096, most},
                                       {4096, most - 4095},
                                       {most - 4095, 4096},
                                       {std::uint64_t{1} << 63, 4096}}) {
        const auto mapping = Mapping::create(memory, {.size_bytes = size, .offset_bytes = offset});
        ASSERT_FALSE(mapping) << offset << " " << size;
        EXPECT_EQ(mapping.error().code(), Errc::out_of_range) << offset << " " << size;
    }
    EXPECT_TRUE(Mapping::create(memory, {.size_bytes = 4096, .offset_bytes = 4096}));
}

TEST(Mapping, ReachesPastTheFileOnlyWhenAsked) {
    const TempFolder folder;
    const Fd file = open_file(folder.write("ram", std::string(5000, 'x')), OpenMode::read_write).value();
    MappingOptions options{.size_bytes = 3 * 4096};
    const auto refused = Mapping::create(file, options);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::out_of_range);
    EXPECT_NE(refused.error().message().find("the file has 5000 bytes"), std::string::npos);

    options.may_exceed_file = true;
    const Mapping mapping = Mapping::create(file, options).value();

    EXPECT_TRUE(can_load(mapping.bytes().data() + 8191));
    EXPECT_FALSE(can_load(mapping.bytes().data() + 8192));
    ASSERT_EQ(::ftruncate(file.view().number(), 3 * 4096), 0);
    EXPECT_TRUE(can_load(mapping.bytes().data() + 8192));
}

TEST(Mapping, WhatIsNoAddressSpaceIsRefused) {
    const Fd memory = some_memory();
    constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
    for (const std::uint64_t size :
         {most, most - 4095, std::uint64_t{1} << 63, std::uint64_t{1} << 57, std::uint64_t{1} << 50}) {
        EXPECT_FALSE(Mapping::create(memory, {.size_bytes = size, .may_exceed_file = true})) << size;
        EXPECT_FALSE(Mapping::create(memory, {.size_bytes = 4096, .guard_bytes = size})) << size;
        EXPECT_FALSE(Mapping::create_anonymous({.size_bytes = size})) << size;
        EXPECT_FALSE(Mapping::create_anonymous({.size_bytes = 4096, .guard_bytes = size})) << size;
    }
    EXPECT_FALSE(Mapping::create_anonymous({}));
    EXPECT_FALSE(Mapping::create(memory, {.may_exceed_file = true}));
}

TEST(Mapping, APrivateCopyIsNobodyElses) {
    const TempFolder folder;
    const Fd file = open_file(folder.write("ram", std::string(two_pages, 'x')), OpenMode::read).value();
    const Mapping copy =
        Mapping::create(file, {.size_bytes = two_pages, .sharing = MapSharing::private_copy}).value();

    EXPECT_EQ(copy.bytes().back(), std::byte{'x'});
    copy.bytes().front() = std::byte{'y'};

    EXPECT_EQ(folder.read("ram"), std::string(two_pages, 'x'));
}

TEST(Mapping, AReadOnlyOneIsNotWritable) {
    const Mapping mapping =
        Mapping::create(some_memory(),
                        {.size_bytes = two_pages, .access = MapAccess::read_only, .guard_bytes = 1})
            .value();
    EXPECT_TRUE(can_load(mapping.bytes().data()));
    EXPECT_FALSE(try_store(mapping.bytes().data(), std::uint8_t{1}));
}

TEST(Mapping, AnonymousMemoryIsZeroAndWritable) {
    for (const MapSharing sharing : {MapSharing::private_copy, MapSharing::shared}) {
        const Mapping memory =
            Mapping::create_anonymous({.size_bytes = 5000, .guard_bytes = 4096, .sharing = sharing}).value();
        ASSERT_EQ(memory.bytes().size(), 5000U);
        EXPECT_TRUE(std::ranges::all_of(memory.bytes(), [](std::byte byte) { return byte == std::byte{0}; }));
        memory.bytes().front() = memory.bytes().back() = std::byte{1};
    }
}

TEST(Mapping, AnonymousMemoryIsSharedWithAChildOnlyWhenItIsShared) {
    for (const MapSharing sharing : {MapSharing::private_copy, MapSharing::shared}) {
        const Mapping memory = Mapping::create_anonymous({.size_bytes = 4096, .sharing = sharing}).value();
        const pid_t child = ::fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            memory.bytes().front() = std::byte{9};
            ::_exit(0);
        }
        ASSERT_EQ(::waitpid(child, nullptr, 0), child);
        EXPECT_EQ(memory.bytes().front() == std::byte{9}, sharing == MapSharing::shared);
    }
}

TEST(Mapping, NobodyGoesPastAGuard) {
    const Fd memory = some_memory();
    for (const std::uint64_t guard : {1U, 4096U, 5000U}) {
        for (const std::uint64_t size : {std::uint64_t{1}, std::uint64_t{5000}, two_pages}) {
            const std::array mappings{
                Mapping::create(memory, {.size_bytes = size, .guard_bytes = guard}).value(),
                Mapping::create_anonymous({.size_bytes = size, .guard_bytes = guard}).value()};
            for (const Mapping& mapping : mappings) {
                const std::byte* const first = mapping.bytes().data();
                const std::uint64_t pages = (size + 4095) / 4096 * 4096;
                const std::uint64_t guard_pages = (guard + 4095) / 4096 * 4096;
                EXPECT_EQ(mapping.bytes().size(), size);
                EXPECT_TRUE(can_load(first));
                EXPECT_TRUE(can_load(first + pages - 1));
                EXPECT_FALSE(can_load(first - 1));
                EXPECT_FALSE(can_load(first - guard_pages));
                EXPECT_FALSE(can_load(first + pages));
                EXPECT_FALSE(can_load(first + pages + guard_pages - 1));
            }
        }
    }
}

TEST(Mapping, GuardsGoAndMoveWithIt) {
    const std::uint64_t before = virtual_bytes();
    const Fd memory = some_memory();
    {
        Mapping first = Mapping::create(memory, {.size_bytes = 5000, .guard_bytes = large_guard}).value();
        EXPECT_GT(virtual_bytes(), before + 2 * large_guard - small_change);
        Mapping second{std::move(first)};
        EXPECT_GT(virtual_bytes(), before + 2 * large_guard - small_change);
        second = Mapping::create_anonymous({.size_bytes = 5000, .guard_bytes = large_guard}).value();
        EXPECT_LT(virtual_bytes(), before + 2 * large_guard + small_change);
        EXPECT_FALSE(can_load(second.bytes().data() - 1));
    }
    EXPECT_LT(virtual_bytes(), before + small_change);
}

TEST(Mapping, WhateverFailsNothingIsLeftOfGuards) {
    const Fd memory = some_memory();
    const std::uint64_t before = virtual_bytes();
    const auto look = [&] { EXPECT_LT(virtual_bytes(), before + small_change); };
    EXPECT_EQ(
        for_each_fault(
            [&] { return Mapping::create(memory, {.size_bytes = 5000, .guard_bytes = large_guard}); }, look),
        5U);  // fstat, F_GETFL, fstatfs, mmap twice
    EXPECT_EQ(for_each_fault(
                  [&] { return Mapping::create_anonymous({.size_bytes = 5000, .guard_bytes = large_guard}); },
                  look),
              2U);
    EXPECT_EQ(for_each_fault([&] { return Mapping::create_anonymous({.size_bytes = 5000}); }, look), 1U);
}

TEST(Mapping, BeginsAtAnAddressOfItsAlignment) {
    constexpr std::uint64_t page = page_size_bytes;
    const Fd file = create_sealed_memory({.name = "aligned", .size_bytes = 3 * page}).value();
    for (const std::uint64_t align :
         {std::uint64_t{0}, page, 2 * page, std::uint64_t{1} << 21, std::uint64_t{1} << 30}) {
        for (const std::uint64_t guard : {std::uint64_t{0}, page}) {
            const auto shown =
                Mapping::create(file, {.size_bytes = 3 * page, .guard_bytes = guard, .align_bytes = align});
            ASSERT_TRUE(shown) << shown.error().message();
            const auto address = reinterpret_cast<std::uintptr_t>(shown->bytes().data());
            EXPECT_EQ(address % std::max(align, page), 0U) << align;
            const auto zeros =
                Mapping::create_anonymous({.size_bytes = page, .guard_bytes = guard, .align_bytes = align});
            ASSERT_TRUE(zeros);
            EXPECT_EQ(reinterpret_cast<std::uintptr_t>(zeros->bytes().data()) % std::max(align, page), 0U);
        }
    }
    for (const std::uint64_t align : {std::uint64_t{3}, page + 1, std::uint64_t{1} << 60}) {
        const auto refused = Mapping::create_anonymous({.size_bytes = page, .align_bytes = align});
        ASSERT_FALSE(refused);
        EXPECT_EQ(refused.error().code(), Errc::invalid_argument) << align;
    }
}

TEST(Mapping, IsCountedByTheKernelWhenAsked) {
    // "nr" in VmFlags: not reserved.
    constexpr std::uint64_t page = page_size_bytes;
    const auto flags_of = [](const Mapping& mapping) {
        std::ifstream maps{"/proc/self/smaps"};
        const std::string start =
            fmt::format("{:x}-", reinterpret_cast<std::uintptr_t>(mapping.bytes().data()));
        bool is_here = false;
        for (std::string line; std::getline(maps, line);) {
            if (line.starts_with(start)) is_here = true;
            if (is_here && line.starts_with("VmFlags:")) return line + " ";
        }
        return std::string{"none"};
    };
    const std::uint64_t size = 16 * page;
    const auto now =
        Mapping::create_anonymous({.size_bytes = size, .guard_bytes = page, .reserve = MapReserve::now});
    const auto later = Mapping::create_anonymous({.size_bytes = size, .guard_bytes = page});
    EXPECT_EQ(flags_of(*now).find(" nr "), std::string::npos);
    EXPECT_NE(flags_of(*later).find(" nr "), std::string::npos);
}

TEST(Mapping, OfHugePagesIsAlignedAndGoesWhole) {
    constexpr std::uint64_t huge = std::uint64_t{2} << 20;
    const Fd file{::memfd_create("test", MFD_CLOEXEC | MFD_HUGETLB | (21U << MAP_HUGE_SHIFT))};
    if (!file.is_open()) GTEST_SKIP() << "this kernel has no huge pages of 2 MiB";
    ASSERT_EQ(::ftruncate(file.view().number(), 2 * huge), 0);
    const std::uint64_t before = virtual_bytes();
    // Private: nothing is reserved, so this works where no huge page is free; none is touched.
    MappingOptions options{.size_bytes = 5000, .offset_bytes = huge, .sharing = MapSharing::private_copy};
    if (const auto plain = Mapping::create(file, options); !plain)
        GTEST_SKIP() << "huge pages of 2 MiB cannot be mapped: " << plain.error().message();
    for (const std::uint64_t guard : {std::uint64_t{0}, std::uint64_t{4096}, large_guard}) {
        options.guard_bytes = guard;
        const Mapping mapping = Mapping::create(file, options).value();
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(mapping.bytes().data()) % huge, 0U);
        EXPECT_EQ(mapping.bytes().size(), 5000U);
        if (guard == 0) continue;
        EXPECT_FALSE(can_load(mapping.bytes().data() - 1));
        EXPECT_FALSE(can_load(mapping.bytes().data() + huge));
    }
    EXPECT_LT(virtual_bytes(), before + small_change);
    options.offset_bytes = 4096;
    const auto refused = Mapping::create(file, options);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message().find("page size 2097152"), std::string::npos)
        << refused.error().message();
}

// ------------------------------------------------------------------------- files in the place of bytes

TEST(MappingShowsAFile, InThePlaceOfItsOwnBytesAlone) {
    const TempFolder folder;
    const Fd file =
        open_file(folder.write("ram", std::string(4096, 'a') + std::string(2 * 4096, 'b')), OpenMode::read)
            .value();
    Mapping memory = Mapping::create_anonymous({.size_bytes = 5 * 4096, .guard_bytes = 4096}).value();
    memory.bytes()[0] = memory.bytes()[3 * 4096] = std::byte{7};

    ASSERT_TRUE(memory.show_file(4096, 2 * 4096, file, 4096));

    EXPECT_EQ(memory.bytes()[0], std::byte{7});
    EXPECT_EQ(memory.bytes()[4096], std::byte{'b'});
    EXPECT_EQ(memory.bytes()[3 * 4096 - 1], std::byte{'b'});
    EXPECT_EQ(memory.bytes()[3 * 4096], std::byte{7});
    memory.bytes()[4096] = std::byte{'c'};
    EXPECT_EQ(folder.read("ram")[4096], 'b');
}

TEST(MappingShowsAFile, WithTheAccessOfTheMapping) {
    const Fd memory = some_memory();
    Mapping mapping = Mapping::create(memory, two_pages, MapAccess::read_only).value();
    Mapping moved = std::move(mapping);
    ASSERT_TRUE(moved.show_file(0, 4096, memory, 4096));
    EXPECT_TRUE(can_load(moved.bytes().data()));
    EXPECT_FALSE(try_store(moved.bytes().data(), std::uint8_t{1}));
}

TEST(MappingShowsAFile, OnlyWithinItselfAndTheFile) {
    constexpr std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
    const Fd file = some_memory();
    Mapping memory = Mapping::create_anonymous({.size_bytes = std::uint64_t{4} * 4096}).value();
    memory.bytes()[0] = std::byte{7};
    struct Try {
        std::uint64_t offset, size, file_offset;
        Errc code;
    };
    for (const Try& bad :
         {Try{0, 0, 0, Errc::out_of_range}, Try{std::uint64_t{4} * 4096, 4096, 0, Errc::out_of_range},
          Try{std::uint64_t{3} * 4096, two_pages, 0, Errc::out_of_range},
          Try{0, most - 4095, 0, Errc::out_of_range}, Try{most - 4095, 4096, 0, Errc::out_of_range},
          Try{0, two_pages, 4096, Errc::out_of_range}, Try{0, 4096, two_pages, Errc::out_of_range},
          Try{0, 4096, most - 4095, Errc::out_of_range}, Try{1, 4096, 0, Errc::invalid_argument},
          Try{0, 4097, 0, Errc::invalid_argument}, Try{0, 4096, 1, Errc::invalid_argument}}) {
        const auto shown = memory.show_file(bad.offset, bad.size, file, bad.file_offset);
        ASSERT_FALSE(shown) << bad.offset << " " << bad.size << " " << bad.file_offset;
        EXPECT_EQ(shown.error().code(), bad.code) << shown.error().message();
    }
    EXPECT_EQ(memory.bytes()[0], std::byte{7});
    EXPECT_TRUE(memory.show_file(two_pages, two_pages, file, 0));
}

TEST(MappingShowsAFile, OrIsAnErrorWhateverFails) {
    const Fd file = some_memory();
    Mapping memory = Mapping::create_anonymous({.size_bytes = two_pages}).value();
    EXPECT_EQ(for_each_fault([&] { return memory.show_file(0, 4096, file, 0); }),
              4U);  // fstat, F_GETFL, fstatfs, mmap
}

TEST(MakeUnreachable, IsAFaultInThesePagesAlone) {
    const Mapping memory = Mapping::create_anonymous({.size_bytes = std::uint64_t{3} * 4096}).value();
    ASSERT_TRUE(make_unreachable(memory.bytes().subspan(4096, 4096)));
    EXPECT_TRUE(can_load(memory.bytes().data() + 4095));
    EXPECT_FALSE(can_load(memory.bytes().data() + 4096));
    EXPECT_FALSE(can_load(memory.bytes().data() + 8191));
    EXPECT_TRUE(can_load(memory.bytes().data() + 8192));
    EXPECT_TRUE(make_unreachable({}));
    EXPECT_FALSE(make_unreachable(memory.bytes().subspan(1, 4096)));
    EXPECT_EQ(for_each_fault([&] { return make_unreachable(memory.bytes()); }), 1U);
}

TEST(CopyToShared, CopiesAllBytesAndNoMore) {
    std::array<std::byte, 4> to{};
    const std::array<std::byte, 3> from{std::byte{1}, std::byte{2}, std::byte{3}};

    copy_to_shared(to, from);
    copy_to_shared(std::span{to}.last<1>(), {});

    EXPECT_EQ(to, (std::array{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{0}}));
}

TEST(CopyFromShared, ReadsWhatAThreadWritesAtTheSameTimeWithoutARace) {
    std::array<std::byte, 64> shared{};
    std::array<std::byte, 64> ones{};
    ones.fill(std::byte{1});
    std::thread writer{[&] {
        for (int turn = 0; turn < 1'000; ++turn) copy_to_shared(shared, ones);
    }};
    std::array<std::byte, 64> copy{};
    for (int turn = 0; turn < 1'000; ++turn) {
        copy_from_shared(copy, shared);
        for (const std::byte byte : copy) EXPECT_TRUE(byte == std::byte{0} || byte == std::byte{1});
    }
    writer.join();
    copy_from_shared(copy, shared);
    EXPECT_EQ(copy, ones);
}

TEST(CopyToSharedDeathTest, MoreThanFitsIsOurOwnBug) {
    std::array<std::byte, 1> to{};
    const std::array<std::byte, 2> from{};
    EXPECT_DEATH(copy_to_shared(to, from), "check failed");
    EXPECT_DEATH(copy_from_shared(to, from), "check failed");
}

}  // namespace
}  // namespace guestmem
