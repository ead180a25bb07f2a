// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/region.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "guestmem/mem/guest_memory.hpp"
#include "guestmem/mem/layout.hpp"
#include "guestmem/mem/pointer_guard.hpp"
#include "guestmem/sys/memfd.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t top = 0xffff'ffff'ffff'ffff;

using RegionPtr = std::shared_ptr<const Region>;

static_assert(!std::is_copy_constructible_v<Region>);

std::shared_ptr<const HostMemory> some_memory(std::uint64_t size_bytes = 4 * page) {
    return HostMemory::create_anonymous({.size_bytes = size_bytes}).value();
}

std::shared_ptr<const HostMemory> read_only_memory() {
    Fd file = create_sealed_memory({.name = "test", .size_bytes = page}).value();
    return HostMemory::create_from_file(std::move(file), {.size_bytes = page, .access = MapAccess::read_only})
        .value();
}

std::string refusal_of(RegionOptions options) {
    const auto region = Region::create(std::move(options));
    return region ? "taken" : region.error().message();
}

TEST(Region, HasAllOfItsMemoryUnlessItSaysLess) {
    const auto memory = some_memory();
    const RegionPtr whole =
        Region::create({.name = "ram", .base = GuestAddress{0x1000}, .memory = memory}).value();
    EXPECT_EQ(whole->range(), GuestRange::create(GuestAddress{0x1000}, 4 * page));
    EXPECT_EQ(whole->host_base(), memory->bytes().data());
    EXPECT_EQ(whole->name(), "ram");
    EXPECT_EQ(whole->dirty().size_bytes(), 4 * page);

    const RegionPtr rest =
        Region::create(
            {.name = "r", .base = GuestAddress{0}, .memory = memory, .memory_offset_bytes = 3 * page})
            .value();
    EXPECT_EQ(rest->range().size_bytes(), page);
    EXPECT_EQ(rest->host_base(), memory->bytes().data() + 3 * page);

    const RegionPtr part = Region::create({.name = "r",
                                           .base = GuestAddress{0},
                                           .size_bytes = 8,
                                           .memory = memory,
                                           .memory_offset_bytes = 4 * page - 8})
                               .value();
    EXPECT_EQ(part->range().size_bytes(), 8U);
    EXPECT_EQ(part->memory_offset_bytes(), 4 * page - 8);
}

TEST(Region, OnlyRamIsWritableAndOnlyADeviceIsNoMemory) {
    const auto make = [](RegionKind kind) {
        return Region::create({.name = "r",
                               .base = GuestAddress{0},
                               .size_bytes = page,
                               .kind = kind,
                               .memory = kind == RegionKind::device ? nullptr : some_memory()})
            .value();
    };
    EXPECT_TRUE(make(RegionKind::ram)->is_writable());
    EXPECT_FALSE(make(RegionKind::read_only)->is_writable());
    EXPECT_FALSE(make(RegionKind::rom)->is_writable());
    EXPECT_FALSE(make(RegionKind::device)->is_writable());
    EXPECT_TRUE(make(RegionKind::rom)->is_memory());
    EXPECT_FALSE(make(RegionKind::device)->is_memory());
    EXPECT_EQ(make(RegionKind::device)->host_base(), nullptr);
    EXPECT_EQ(make(RegionKind::device)->memory(), nullptr);
}

TEST(Region, KindsHaveNames) {
    EXPECT_EQ(to_string(RegionKind::ram), "ram");
    EXPECT_EQ(to_string(RegionKind::read_only), "read-only");
    EXPECT_EQ(to_string(RegionKind::rom), "rom");
    EXPECT_EQ(to_string(RegionKind::device), "device");
}

TEST(Region, MemoryHasToBeThereAndADeviceHasNone) {
    EXPECT_EQ(refusal_of({.name = "main", .base = GuestAddress{0x1000}}),
              "region 'main' at guest address 0x1000: a ram region needs memory");
    EXPECT_EQ(refusal_of({.name = "bios", .base = GuestAddress{0}, .kind = RegionKind::rom}),
              "region 'bios' at guest address 0x0: a rom region needs memory");
    EXPECT_EQ(refusal_of({.name = "uart",
                          .base = GuestAddress{0},
                          .size_bytes = page,
                          .kind = RegionKind::device,
                          .memory = some_memory()}),
              "region 'uart' at guest address 0x0: a device region has no memory; give none");
    EXPECT_EQ(refusal_of({.name = "uart", .base = GuestAddress{0}, .kind = RegionKind::device}),
              "region 'uart' at guest address 0x0: it is empty; a region has at least one byte");
}

TEST(Region, StaysInsideItsMemory) {
    const auto memory = some_memory();
    RegionOptions options{.name = "r", .base = GuestAddress{0}, .memory = memory};
    options.memory_offset_bytes = 4 * page;
    EXPECT_EQ(
        refusal_of(options),
        "region 'r' at guest address 0x0: its offset 16384 is past the end of its memory of 16384 bytes");
    options.memory_offset_bytes = top;
    EXPECT_NE(refusal_of(options), "taken");
    options.memory_offset_bytes = 4 * page - 1;
    EXPECT_EQ(refusal_of(options), "taken");
    options.size_bytes = 2;
    EXPECT_EQ(
        refusal_of(options),
        "region 'r' at guest address 0x0: 2 bytes are asked for, and its memory has 1 from offset 16383 on");
    options.memory_offset_bytes = 1;
    options.size_bytes = top;
    EXPECT_NE(refusal_of(options), "taken");
}

TEST(Region, MayEndAtTheLastAddressAndNotPastIt) {
    EXPECT_EQ(refusal_of({.name = "r", .base = GuestAddress{top - page + 1}, .memory = some_memory(page)}),
              "taken");
    EXPECT_EQ(refusal_of({.name = "r", .base = GuestAddress{top - page + 2}, .memory = some_memory(page)}),
              "region 'r' at guest address 0xfffffffffffff001: its 4096 bytes reach past 2^64");
}

TEST(Region, ReadOnlyMemoryIsNoRam) {
    const auto memory = read_only_memory();
    EXPECT_EQ(
        refusal_of({.name = "r", .base = GuestAddress{0}, .memory = memory}),
        "region 'r' at guest address 0x0: its memory is mapped read-only; make it a read-only or rom region");
    EXPECT_EQ(
        refusal_of({.name = "r", .base = GuestAddress{0}, .kind = RegionKind::read_only, .memory = memory}),
        "taken");
    EXPECT_EQ(refusal_of({.name = "r", .base = GuestAddress{0}, .kind = RegionKind::rom, .memory = memory}),
              "taken");
}

TEST(Region, PlacedElsewhereItHasTheSameBytesAndTheSameTracker) {
    RegionPtr first = Region::create({.name = "dimm",
                                      .base = GuestAddress{0},
                                      .size_bytes = page,
                                      .memory = some_memory(),
                                      .memory_offset_bytes = page})
                          .value();
    RegionPtr second = first->placed_at(GuestAddress{16 * page}).value();
    const RegionPtr third = second->placed_at(GuestAddress{32 * page}).value();

    EXPECT_EQ(third->host_base(), first->host_base());
    EXPECT_EQ(third->range(), GuestRange::create(GuestAddress{32 * page}, page));
    EXPECT_EQ(third->name(), "dimm");
    EXPECT_EQ(&third->dirty(), &first->dirty());
    EXPECT_EQ(&second->dirty(), &first->dirty());

    // The tracker lives as long as anybody who shares it.
    second = nullptr;
    const std::weak_ptr<const Region> origin = first;
    first = nullptr;
    EXPECT_FALSE(origin.expired());
    ASSERT_TRUE(third->dirty().start());
    third->dirty().mark_written(0, 1);
    EXPECT_EQ(third->dirty().harvest().value().count_pages(), 1U);
}

TEST(Region, CannotBePlacedPast2To64) {
    const RegionPtr region =
        Region::create({.name = "r", .base = GuestAddress{0}, .memory = some_memory(2 * page)}).value();
    EXPECT_TRUE(region->placed_at(GuestAddress{top - 2 * page + 1}));
    const auto moved = region->placed_at(GuestAddress{top - page + 1});
    ASSERT_FALSE(moved);
    EXPECT_EQ(moved.error().message(),
              "region 'r' at guest address 0xfffffffffffff000: its 8192 bytes reach past 2^64");
}

TEST(Region, KeepsItsBytesMapped) {
    auto memory = some_memory();
    const std::weak_ptr<const HostMemory> watch = memory;
    RegionPtr region =
        Region::create({.name = "r", .base = GuestAddress{0}, .memory = std::move(memory)}).value();
    EXPECT_FALSE(watch.expired());
    region->host_base()[0] = std::byte{1};
    region = nullptr;
    EXPECT_TRUE(watch.expired());
}

GuestMemory memory_over(const RegionPtr& region) {
    Layout layout;
    layout.add(region);
    return GuestMemory{std::move(layout).freeze().value()};
}

TEST(Region, KnowsWhoHoldsPointersIntoItWhileTheyDo) {
    const RegionPtr region =
        Region::create({.name = "r", .base = GuestAddress{0}, .memory = some_memory()}).value();
    GuestMemory memory = memory_over(region);
    EXPECT_THAT(region->holders(), IsEmpty());
    {
        const auto first = ReadPointer::create(memory, GuestAddress{0}, 8, "kernel header");
        auto second = WritePointer::create(memory, GuestAddress{8}, 8, "packet");
        ASSERT_TRUE(first && second);
        EXPECT_THAT(region->holders(), ElementsAre("kernel header", "packet"));
        {
            const auto again = ReadPointer::create(memory, GuestAddress{0}, 8, "kernel header");
            EXPECT_THAT(region->holders(), ElementsAre("kernel header", "packet", "kernel header"));
        }
        const WritePointer moved = std::move(*second);
        EXPECT_THAT(region->holders(), ElementsAre("kernel header", "packet"));
    }
    EXPECT_THAT(region->holders(), IsEmpty());
}

TEST(Region, CountsHoldersOfManyThreads) {
    const RegionPtr region =
        Region::create({.name = "r", .base = GuestAddress{0}, .memory = some_memory()}).value();
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([&] {
            GuestMemory memory = memory_over(region);
            for (int turn = 0; turn < 500; ++turn) {
                const auto pointer = ReadPointer::create(memory, GuestAddress{0}, 8, "thread");
                EXPECT_TRUE(pointer);
                EXPECT_GE(region->holders().size(), 1U);
            }
        });
    for (std::thread& thread : threads) thread.join();
    EXPECT_THAT(region->holders(), IsEmpty());
}

}  // namespace
}  // namespace guestmem
