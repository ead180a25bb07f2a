// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/guest_slice.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "guestmem/mem/live_map.hpp"
#include "guestmem/mem/scatter_list.hpp"
#include "guestmem/mem/testing/test_map.hpp"

namespace guestmem {
namespace {

using testing::counted_bytes;
using testing::TestMap;
using Numbers = std::vector<std::uint64_t>;
using namespace std::chrono_literals;

constexpr std::uint64_t last_address = std::numeric_limits<std::uint64_t>::max();

GuestRange range_of(std::uint64_t base, std::uint64_t size_bytes) {
    return GuestRange::create(GuestAddress{base}, size_bytes).value();
}

/// A live map of RAM at 0x1000 and 0x2000, ROM at 0x3000 and a device at 0x4000, one page each, and its last page.
class CachedSliceTest : public ::testing::Test {
protected:
    static TestMap machine() {
        TestMap memory;
        memory.ram(0x1000, 0x1000).ram(0x2000, 0x1000).rom(0x3000, 0x1000).device(0x4000, 0x1000);
        memory.ram(last_address - 0xfff, 0x1000);
        memory.count_up().start_tracking();
        return memory;
    }
    static std::shared_ptr<const Region> other_ram(std::uint64_t base) {
        return Region::create({.name = "other",
                               .base = GuestAddress{base},
                               .memory = HostMemory::create_anonymous({.size_bytes = 0x1000}).value()})
            .value();
    }

    TestMap memory_ = machine();
    LiveMap live_{memory_.take_map()};
    MapReader reader_ = live_.make_reader("queue").value();
};

TEST_F(CachedSliceTest, ReachesItsRangeAndNothingElse) {
    for (const std::uint64_t size : {1U, 2U, 7U, 8U, 9U, 64U, 0xef0U}) {
        for (const std::uint64_t base : {0x1108ULL, 0x1103ULL}) {
            SCOPED_TRACE(::testing::Message() << size << " bytes at " << std::hex << base);
            CachedSlice cached{range_of(base, size)};
            static_cast<void>(reader_.memory());
            GuestSlice& slice = **cached.slice(reader_);
            EXPECT_EQ(slice.size_bytes(), size);
            const auto host = memory_.bytes(0).subspan(base - 0x1000, size);
            for (std::uint64_t i = 0; i < size; ++i)
                ASSERT_EQ(*slice.read<std::uint8_t>(slice.at(i)), std::to_integer<std::uint8_t>(host[i]));
            // The last place of each size is good, the one after it is not.
            const auto expect_end = [&]<typename T>(T) {
                if (size >= sizeof(T)) {
                    EXPECT_TRUE(slice.read<T>(slice.at(size - sizeof(T))));
                    EXPECT_TRUE(slice.write<T>(slice.at(size - sizeof(T)), T{}));
                }
                const std::uint64_t first = size >= sizeof(T) ? size - sizeof(T) + 1 : 0;
                for (std::uint64_t i = first; i < size + 3; ++i) {
                    const AccessError expected{AccessReason::out_of_range, Access::read,
                                               base + std::max(i, size), std::max(i, size) - i};
                    ASSERT_EQ(slice.read<T>(slice.at(i)).error(), expected);
                    ASSERT_EQ(slice.write<T>(slice.at(i), T{1}).error().reason(), AccessReason::out_of_range);
                }
            };
            expect_end(std::uint8_t{});
            expect_end(std::uint16_t{});
            expect_end(std::uint32_t{});
            expect_end(std::uint64_t{});
            expect_end(std::array<std::uint8_t, 12>{});
            for (const std::uint64_t outside :
                 {std::uint64_t{0}, base - 1, base - 8, std::uint64_t{0x2000}, last_address})
                EXPECT_EQ(slice.read<std::uint8_t>(GuestAddress{outside}).error(),
                          (AccessError{AccessReason::out_of_range, Access::read, outside, 0}));
        }
    }
}

TEST_F(CachedSliceTest, RefusesAnyOffsetBehindItsEndAlsoAtTheEndOfAllAddresses) {
    CachedSlice cached{range_of(last_address - 7, 8)};
    static_cast<void>(reader_.memory());
    GuestSlice& slice = **cached.slice(reader_);
    EXPECT_TRUE(slice.read<std::uint64_t>(slice.at(0)));
    EXPECT_TRUE(slice.read<std::uint8_t>(slice.at(7)));
    for (const std::uint64_t offset :
         {std::uint64_t{8}, std::uint64_t{100}, last_address - 8, last_address}) {
        SCOPED_TRACE(offset);
        EXPECT_FALSE(slice.read<std::uint8_t>(slice.at(offset)));
        EXPECT_FALSE(slice.load<std::uint32_t>(slice.at(offset)));
        EXPECT_FALSE(slice.write<std::uint64_t>(slice.at(offset), 1));
    }
    EXPECT_EQ(slice.read<std::uint64_t>(slice.at(1)).error().reason(), AccessReason::overflow);
}

TEST_F(CachedSliceTest, DoesAllThatAViewDoesInsideOfItsRange) {
    CachedSlice cached{range_of(0x1040, 0x100)};
    static_cast<void>(reader_.memory());
    GuestSlice& slice = **cached.slice(reader_);
    ASSERT_TRUE(slice.fill(slice.at(0), std::byte{1}, 0x100));
    EXPECT_EQ(memory_.take_dirty(0), (Numbers{1, 2, 3, 4}));
    EXPECT_EQ(*slice.fetch_add<std::uint16_t>(slice.at(2), 1), 0x0101);
    EXPECT_EQ(memory_.take_dirty(0), Numbers{1});
    EXPECT_TRUE(slice.store<std::uint64_t>(slice.at(0xf8), 7, std::memory_order_release));
    EXPECT_EQ(memory_.take_dirty(0), Numbers{4});
    const std::vector<std::byte> bytes = counted_bytes(0x80, 5);
    ASSERT_TRUE(slice.write_bytes(slice.at(0x20), bytes));
    EXPECT_EQ(memory_.take_dirty(0), (Numbers{1, 2, 3}));
    EXPECT_TRUE(std::ranges::equal(memory_.bytes(0).subspan(0x60, 0x80), bytes));
    EXPECT_EQ(*slice.compare(slice.at(0x20), bytes), std::strong_ordering::equal);
    EXPECT_TRUE(slice.copy(slice.at(0), slice.at(0x20), 0x80));
    EXPECT_EQ(slice.copy(slice.at(0x81), slice.at(0), 0x80).error(),
              (AccessError{AccessReason::out_of_range, Access::write, 0x1140, 0}));
    EXPECT_EQ(slice.write_bytes(slice.at(0xf0), bytes).error(),
              (AccessError{AccessReason::out_of_range, Access::write, 0x1140, 0}));
    EXPECT_EQ(*slice.write_some(slice.at(0xf0), bytes), 0x10U);
    ScatterList list{Access::read, "slice"};
    EXPECT_TRUE(list.add(slice, slice.at(0x10), 0x20));
    EXPECT_EQ(list.slices()[0].data, memory_.bytes(0).data() + 0x50);
    EXPECT_FALSE(list.add(slice, slice.at(0xf0), 0x20));
}

TEST_F(CachedSliceTest, IsReadableAndNotWritableInRom) {
    CachedSlice cached{range_of(0x3000, 64)};
    static_cast<void>(reader_.memory());
    GuestSlice& slice = **cached.slice(reader_);
    EXPECT_TRUE(slice.read<std::uint64_t>(slice.at(0)));
    EXPECT_EQ(slice.write<std::uint64_t>(slice.at(8), 1).error(),
              (AccessError{AccessReason::read_only, Access::write, 0x3008, 0}));
    EXPECT_EQ(slice.store<std::uint64_t>(slice.at(8), 1).error().reason(), AccessReason::read_only);
    EXPECT_TRUE(std::ranges::equal(memory_.bytes(2), counted_bytes(0x1000, 0x2000)));
}

TEST_F(CachedSliceTest, IsAnErrorWhereItsRangeIsNotInOneRegionOfMemory) {
    struct Case {
        GuestRange range;
        AccessError expected;
    };
    const Case cases[] = {
        {range_of(0x1ff8, 16), {AccessReason::crosses_border, Access::read, 0x2000, 0}},
        {range_of(0x0ff8, 16), {AccessReason::hole, Access::read, 0x0ff8, 0}},
        {range_of(0x4000, 16), {AccessReason::device, Access::read, 0x4000, 0}},
        {range_of(0x3ff8, 16), {AccessReason::device, Access::read, 0x4000, 0}},
        {range_of(0x5000, 16), {AccessReason::hole, Access::read, 0x5000, 0}},
        {range_of(0x1000, 0x8000), {AccessReason::device, Access::read, 0x4000, 0}},
    };
    static_cast<void>(reader_.memory());
    for (const Case& one : cases) {
        CachedSlice cached{one.range};
        const auto slice = cached.slice(reader_);
        ASSERT_FALSE(slice) << std::hex << one.range.base().value();
        EXPECT_EQ(slice.error(), one.expected);
        EXPECT_FALSE(cached.slice(reader_));  // and asks again the next time
        EXPECT_EQ(cached.range(), one.range);
    }
}

TEST_F(CachedSliceTest, LooksAgainWhenItsReaderHoldsAnotherMap) {
    CachedSlice cached{range_of(0x2010, 8)};
    static_cast<void>(reader_.memory());
    GuestSlice* const first = *cached.slice(reader_);
    ASSERT_TRUE(first->write<std::uint64_t>(first->at(0), 1));
    EXPECT_EQ(*cached.slice(reader_), first);

    const auto replacement = other_ram(0x2000);
    const RetiredMap old = live_.replace(range_of(0x2000, 0x1000), replacement).value();
    // The reader has not come by: the slice is the old map's, which is alive.
    ASSERT_TRUE((*cached.slice(reader_))->write<std::uint64_t>(GuestAddress{0x2010}, 2));
    EXPECT_EQ(memory_.bytes(1)[0x10], std::byte{2});
    EXPECT_FALSE(live_.wait_until_unused(old, 1ms));

    static_cast<void>(reader_.memory());
    GuestSlice* const second = *cached.slice(reader_);
    EXPECT_EQ(*second->read<std::uint64_t>(second->at(0)), 0U);
    ASSERT_TRUE(second->write<std::uint64_t>(second->at(0), 3));
    EXPECT_EQ(replacement->host_base()[0x10], std::byte{3});
    EXPECT_EQ(memory_.bytes(1)[0x10], std::byte{2});
    EXPECT_TRUE(live_.wait_until_unused(old, 1s));
}

TEST_F(CachedSliceTest, IsAnErrorOnceItsRangeIsGoneAndGoodOnceItIsBack) {
    CachedSlice cached{range_of(0x2010, 8)};
    ASSERT_TRUE(live_.remove(range_of(0x2000, 0x1000)));
    static_cast<void>(reader_.memory());
    for (int turn = 0; turn < 3; ++turn) {
        EXPECT_EQ(cached.slice(reader_).error().reason(), AccessReason::hole);
        ASSERT_TRUE(live_.insert(other_ram(0x2000)));
        EXPECT_EQ(cached.slice(reader_).error().reason(), AccessReason::hole);  // the reader has not come by
        static_cast<void>(reader_.memory());
        ASSERT_TRUE(cached.slice(reader_));
        ASSERT_TRUE(live_.remove(range_of(0x2000, 0x1000)));
        ASSERT_TRUE(cached.slice(reader_));
        static_cast<void>(reader_.memory());
    }
}

TEST_F(CachedSliceTest, IsValidInEachPinAndSeesAMapThatCameBetweenThem) {
    CachedSlice cached{range_of(0x2010, 8)};
    {
        const MapPin pin = reader_.pin();
        ASSERT_TRUE((*cached.slice(reader_))->write<std::uint64_t>(GuestAddress{0x2010}, 5));
    }
    ASSERT_TRUE(live_.replace(range_of(0x2000, 0x1000), other_ram(0x2000)));
    {
        const MapPin pin = reader_.pin();
        EXPECT_EQ(*(*cached.slice(reader_))->read<std::uint64_t>(GuestAddress{0x2010}), 0U);
    }
}

TEST_F(CachedSliceTest, HoldsAtHostAddressesThatDoNotSuitTheGuests) {
    TestMap memory;
    memory.shifted_ram(0x1000, 64, 5).count_up().start_tracking();
    LiveMap live{memory.map()};
    MapReader reader = live.make_reader("test").value();
    static_cast<void>(reader.memory());
    CachedSlice cached{range_of(0x1000, 64)};
    GuestSlice& slice = **cached.slice(reader);
    ASSERT_TRUE(slice.write<std::uint64_t>(slice.at(8), 0x1122334455667788));
    EXPECT_EQ(*slice.read<std::uint64_t>(slice.at(8)), 0x1122334455667788U);
    EXPECT_EQ(memory.bytes(0)[8], std::byte{0x88});
    EXPECT_EQ(memory.take_dirty(0), Numbers{0});
    EXPECT_EQ(slice.load<std::uint64_t>(slice.at(8)).error().reason(), AccessReason::misaligned);
    EXPECT_EQ(*slice.load<std::uint8_t>(slice.at(8)), 0x88);
}

TEST_F(CachedSliceTest, ServesAQueueWhileItsMemoryIsReplacedAgainAndAgain) {
    // The device counts up in a field of the ring; each replacement begins at zero, and the old page's owner waits.
    constexpr std::uint64_t ring = 0x2000;
    std::shared_ptr<const Region> current = memory_.shared_region(1);
    std::memset(current->host_base(), 0, 64);
    std::atomic<bool> is_over{false};
    std::atomic<std::uint64_t> count_served{0};
    std::thread device{[&] {
        CachedSlice cached{range_of(ring, 64)};
        while (!is_over.load(std::memory_order_relaxed)) {
            const MapPin pin = reader_.pin();
            GuestSlice& slice = **cached.slice(reader_);
            const auto before = slice.fetch_add<std::uint64_t>(slice.at(8), 1);
            const auto after = pin->read<std::uint64_t>(GuestAddress{ring + 8});
            GM_CHECK(before && after && *after == *before + 1);
            count_served.fetch_add(1, std::memory_order_relaxed);
        }
    }};
    std::uint64_t total = 0;
    const auto count_in = [](const Region& region) {
        std::uint64_t count = 0;
        std::memcpy(&count, region.host_base() + 8, sizeof count);
        return count;
    };
    for (int turn = 0; turn < 100; ++turn) {
        auto next = other_ram(ring);
        const RetiredMap old = live_.replace(range_of(ring, 0x1000), next).value();
        ASSERT_TRUE(live_.wait_until_unused(old, 10s));
        total += count_in(*current);
        current = next;
    }
    while (count_in(*current) == 0) std::this_thread::yield();
    is_over.store(true);
    device.join();
    EXPECT_EQ(total + count_in(*current), count_served.load());
}

}  // namespace
}  // namespace guestmem
