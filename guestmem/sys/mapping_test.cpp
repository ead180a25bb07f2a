// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/mapping.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <limits>
#include <thread>
#include <type_traits>

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
    EXPECT_EQ(count, 3U);  // fstat, F_GETFL, mmap
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
