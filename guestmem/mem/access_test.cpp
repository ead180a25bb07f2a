// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/access.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/mem/guest_memory.hpp"
#include "guestmem/mem/testing/lost_memory.hpp"
#include "guestmem/mem/testing/test_map.hpp"

namespace guestmem {
namespace {

using testing::counted_bytes;
using testing::is_all;
using testing::LostMemory;
using testing::LostMemoryTest;
using testing::TestMap;
using Numbers = std::vector<std::uint64_t>;

constexpr std::uint64_t last_address = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint64_t max_size = last_address;

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span{text}); }

/// All views of one map do the same.
///
///     number  what    where
///     0       RAM     0x1000 to 0x10ff
///     1       RAM     0x1100 to 0x11ff
///             hole
///     2       RAM     0x1400 to 0x14ff
///     3       ROM     0x1500 to 0x15ff
///     4       RAM     0x1600 to 0x16ff
///     5       device  0x1700 to 0x17ff
///     6       RAM     0x1800 to 0x18ff, 3 bytes off the host's multiples of 8
///     7       RAM     0x1900 to 0x1904
///             hole
///     8       RAM     the last 256 bytes
template <typename View>
class ByteAccessTest : public ::testing::Test {
protected:
    static constexpr std::uint64_t top = last_address - 0xff;

    static TestMap machine() {
        TestMap memory;
        memory.ram(0x1000, 0x100).ram(0x1100, 0x100).ram(0x1400, 0x100).rom(0x1500, 0x100);
        memory.ram(0x1600, 0x100).device(0x1700, 0x100).shifted_ram(0x1800, 0x100, 3);
        memory.shifted_ram(0x1900, 5, 0).ram(top, 0x100);
        memory.count_up().start_tracking();
        return memory;
    }

    /// What is in the regions that are memory, one after the other.
    [[nodiscard]] std::vector<std::byte> all_bytes() const {
        std::vector<std::byte> all;
        for (std::size_t i = 0; i < 9; ++i)
            if (memory_.region(i).is_memory()) std::ranges::copy(memory_.bytes(i), std::back_inserter(all));
        return all;
    }
    /// Whether no page of any region is dirty.
    [[nodiscard]] bool is_clean() const {
        for (std::size_t i = 0; i < 9; ++i)
            if (memory_.region(i).is_memory() && !memory_.take_dirty(i).empty()) return false;
        return true;
    }

    TestMap memory_ = machine();
    View view_{memory_.map()};
};

using Views = ::testing::Types<testing::MapViewOfMap, testing::GuestMemoryOfMap, testing::MapReaderOfMap>;
TYPED_TEST_SUITE(ByteAccessTest, Views);

TYPED_TEST(ByteAccessTest, ReachesTheFirstAndTheLastByteOfEachRegionAndNotOneFurther) {
    auto& view = *this->view_;
    std::array<std::byte, 1> byte{};
    for (const std::size_t number : {0U, 1U, 2U, 3U, 4U, 6U, 7U, 8U}) {
        const Region& region = this->memory_.region(number);
        SCOPED_TRACE(number);
        for (const GuestAddress address : {region.range().base(), region.range().last()}) {
            ASSERT_TRUE(view.read_bytes(address, byte));
            EXPECT_EQ(byte[0], region.host_base()[address.value() - region.range().base().value()]);
        }
    }
    for (const std::uint64_t address : {0xfffULL, 0x1200ULL, 0x13ffULL, 0x1905ULL, 0x100000ULL}) {
        const auto read = view.read_bytes(GuestAddress{address}, byte);
        ASSERT_FALSE(read) << address;
        EXPECT_EQ(read.error(), (AccessError{AccessReason::hole, Access::read, address, 0}));
    }
}

TYPED_TEST(ByteAccessTest, TellsEachReasonWithItsAddressAndTheBytesDone) {
    struct Case {
        std::uint64_t address;
        std::uint64_t size_bytes;
        Access access;
        AccessReason reason;
        std::uint64_t refused;  ///< address
        std::uint64_t count_read;
    };
    const Case cases[] = {
        {0x1200, 1, Access::read, AccessReason::hole, 0x1200, 0},
        {0x11fe, 4, Access::read, AccessReason::hole, 0x1200, 2},
        {0x1080, 0x200, Access::write, AccessReason::hole, 0x1200, 0},
        {0, 8, Access::write, AccessReason::hole, 0, 0},
        {0x1500, 1, Access::write, AccessReason::read_only, 0x1500, 0},
        {0x14ff, 2, Access::write, AccessReason::read_only, 0x1500, 0},
        {0x15ff, 2, Access::write, AccessReason::read_only, 0x15ff, 0},
        {0x1700, 1, Access::read, AccessReason::device, 0x1700, 0},
        {0x1480, 0x300, Access::read, AccessReason::device, 0x1700, 0x280},
        {0x16ff, 2, Access::write, AccessReason::device, 0x1700, 0},
        {0x1904, 2, Access::read, AccessReason::hole, 0x1905, 1},
        {last_address, 2, Access::read, AccessReason::overflow, last_address, 0},
        {last_address, 2, Access::write, AccessReason::overflow, last_address, 0},
        {1, max_size, Access::write, AccessReason::hole, 1, 0},
        {2, max_size, Access::write, AccessReason::overflow, 2, 0},
    };
    auto& view = *this->view_;
    const std::vector<std::byte> before = this->all_bytes();
    for (const Case& one : cases) {
        SCOPED_TRACE(::testing::Message() << std::hex << one.address << " + " << one.size_bytes);
        const GuestAddress address{one.address};
        const AccessError expected{one.reason, one.access, one.refused, one.count_read};
        const AccessError expected_of_check{one.reason, one.access, one.refused, 0};
        EXPECT_EQ(view.check_range(address, one.size_bytes, one.access).error(), expected_of_check);
        if (one.access == Access::write) {
            EXPECT_EQ(view.fill(address, std::byte{0xee}, one.size_bytes).error(), expected);
        }
        if (one.size_bytes > 0x1000) continue;
        std::vector<std::byte> buffer(one.size_bytes, std::byte{0xee});
        const auto done =
            one.access == Access::read ? view.read_bytes(address, buffer) : view.write_bytes(address, buffer);
        EXPECT_EQ(done.error(), expected);
    }
    EXPECT_EQ(this->all_bytes(), before);
    EXPECT_TRUE(this->is_clean());
}

TYPED_TEST(ByteAccessTest, SaysThatNothingIsMappedBeyondTheLastRegion) {
    TestMap memory;
    memory.ram(0x1000, 0x100);
    TypeParam holder{memory.map()};
    auto& view = *holder;
    std::array<std::byte, 2> bytes{};
    const auto read = view.read_bytes(GuestAddress{0x10ff}, bytes);
    EXPECT_EQ(read.error(), (AccessError{AccessReason::out_of_range, Access::read, 0x1100, 1}));
    EXPECT_EQ(view.write_bytes(GuestAddress{last_address}, std::span{bytes}.first(1)).error().reason(),
              AccessReason::out_of_range);
    EXPECT_EQ(view.read_bytes(GuestAddress{0xfff}, bytes).error().reason(), AccessReason::hole);

    TestMap nothing;
    TypeParam holder_of_nothing{nothing.map()};
    for (const std::uint64_t address : {std::uint64_t{0}, std::uint64_t{1} << 40, last_address})
        EXPECT_EQ((*holder_of_nothing).read_bytes(GuestAddress{address}, std::span{bytes}.first(1)).error(),
                  (AccessError{AccessReason::out_of_range, Access::read, address, 0}));
}

TYPED_TEST(ByteAccessTest, MovesBytesAcrossTheBorderOfTwoRegions) {
    auto& view = *this->view_;
    for (std::uint64_t below = 0; below <= 0x100; below += below < 12 || below >= 0xf4 ? 1 : 29) {
        for (std::uint64_t above = 0; above <= 0x100; above += above < 12 || above >= 0xf4 ? 1 : 29) {
            SCOPED_TRACE(::testing::Message() << below << " below, " << above << " above");
            const GuestAddress address{0x1100 - below};
            const std::vector<std::byte> from = counted_bytes(below + above, below * 7);
            ASSERT_TRUE(view.write_bytes(address, from));
            EXPECT_TRUE(std::ranges::equal(this->memory_.bytes(0).last(below), std::span{from}.first(below)));
            EXPECT_TRUE(std::ranges::equal(this->memory_.bytes(1).first(above), std::span{from}.last(above)));
            std::vector<std::byte> to(from.size());
            ASSERT_TRUE(view.read_bytes(address, to));
            EXPECT_EQ(to, from);
        }
    }
}

TYPED_TEST(ByteAccessTest, CopiesAnyNumberOfBytesAtAnyPlaceAndNoneBeside) {
    TestMap memory;
    memory.shifted_ram(0x10000, 20000, 0).shifted_ram(0x20000, 20000, 5);
    TypeParam holder{memory.map()};
    auto& view = *holder;
    const std::uint64_t sizes[] = {1,   2,   3,   7,   8,   9,    15,   31,   63,   64,   65,   127,  128,
                                   129, 255, 511, 512, 513, 1023, 2047, 2049, 4095, 4096, 4097, 8191, 12289};
    for (const std::uint64_t base : {0x10000ULL, 0x20000ULL}) {
        for (const std::uint64_t size : sizes) {
            for (const std::uint64_t offset : {0U, 1U, 4U, 63U, 4093U}) {
                SCOPED_TRACE(::testing::Message() << std::hex << base << " + " << offset << ", " << size);
                const std::span<std::byte> host = memory.bytes(base == 0x10000 ? 0 : 1);
                std::ranges::fill(host, std::byte{0x33});
                const std::vector<std::byte> from = counted_bytes(size, offset + 1);
                ASSERT_TRUE(view.write_bytes(GuestAddress{base + offset}, from));
                EXPECT_TRUE(is_all(host.first(offset), std::byte{0x33}));
                EXPECT_TRUE(std::ranges::equal(host.subspan(offset, size), from));
                EXPECT_TRUE(is_all(host.subspan(offset + size), std::byte{0x33}));
                std::vector<std::byte> to(size + 2, std::byte{0x44});
                ASSERT_TRUE(view.read_bytes(GuestAddress{base + offset}, std::span{to}.subspan(1, size)));
                EXPECT_TRUE(std::ranges::equal(std::span{to}.subspan(1, size), from));
                EXPECT_EQ(to.front(), std::byte{0x44});
                EXPECT_EQ(to.back(), std::byte{0x44});
            }
        }
    }
}

TYPED_TEST(ByteAccessTest, TheSomeVerbsStopAtTheFirstByteThatRefuses) {
    auto& view = *this->view_;
    std::vector<std::byte> buffer(0x400, std::byte{0xee});
    EXPECT_EQ(*view.read_some(GuestAddress{0x10f0}, buffer), 0x110U);
    EXPECT_EQ(*view.read_some(GuestAddress{0x1400}, buffer), 0x300U);  // through ROM, to the device
    EXPECT_EQ(*view.read_some(GuestAddress{0x1100}, std::span{buffer}.first(3)), 3U);
    EXPECT_EQ(*view.read_some(GuestAddress{last_address - 9}, buffer), 10U);
    EXPECT_EQ(*view.read_some(GuestAddress{last_address}, buffer), 1U);
    EXPECT_EQ(view.read_some(GuestAddress{0x1200}, buffer).error(),
              (AccessError{AccessReason::hole, Access::read, 0x1200, 0}));
    EXPECT_TRUE(this->is_clean());

    std::ranges::fill(buffer, std::byte{0xee});
    EXPECT_EQ(*view.write_some(GuestAddress{0x14fe}, buffer), 2U);
    EXPECT_EQ(this->memory_.bytes(2)[0xfd], counted_bytes(0x300)[0x2fd]);
    EXPECT_TRUE(is_all(this->memory_.bytes(2).last(2), std::byte{0xee}));
    EXPECT_EQ(*view.write_some(GuestAddress{last_address - 1}, buffer), 2U);
    EXPECT_TRUE(is_all(this->memory_.bytes(8).last(2), std::byte{0xee}));
    EXPECT_EQ(view.write_some(GuestAddress{0x1500}, buffer).error(),
              (AccessError{AccessReason::read_only, Access::write, 0x1500, 0}));
    EXPECT_EQ(view.write_some(GuestAddress{0x1700}, buffer).error(),
              (AccessError{AccessReason::device, Access::write, 0x1700, 0}));
    EXPECT_EQ(this->memory_.take_dirty(2), Numbers{3});
    EXPECT_EQ(this->memory_.take_dirty(8), Numbers{3});
    EXPECT_TRUE(this->is_clean());
}

TYPED_TEST(ByteAccessTest, DoesNothingWellAtAnyAddress) {
    auto& view = *this->view_;
    const std::vector<std::byte> before = this->all_bytes();
    for (const std::uint64_t address : {std::uint64_t{0}, std::uint64_t{0x1000}, std::uint64_t{0x1200},
                                        std::uint64_t{0x1500}, std::uint64_t{0x1700}, last_address}) {
        SCOPED_TRACE(address);
        const GuestAddress at{address};
        EXPECT_TRUE(view.read_bytes(at, {}));
        EXPECT_TRUE(view.write_bytes(at, {}));
        EXPECT_EQ(*view.read_some(at, {}), 0U);
        EXPECT_EQ(*view.write_some(at, {}), 0U);
        EXPECT_TRUE(view.fill(at, std::byte{1}, 0));
        EXPECT_TRUE(view.copy(at, at, 0));
        EXPECT_EQ(*view.compare(at, {}), std::strong_ordering::equal);
        EXPECT_TRUE(view.check_range(at, 0, Access::write));
        EXPECT_EQ(view.read_string(at, 0).error(),
                  (AccessError{AccessReason::unterminated, Access::read, address, 0}));
    }
    EXPECT_EQ(this->all_bytes(), before);
    EXPECT_TRUE(this->is_clean());
}

TYPED_TEST(ByteAccessTest, FillsARangeAndNothingBesideIt) {
    auto& view = *this->view_;
    std::vector<std::byte> expected = this->all_bytes();
    ASSERT_TRUE(view.fill(GuestAddress{0x1001}, std::byte{0xee}, 0x1fe));
    std::ranges::fill(std::span{expected}.subspan(1, 0x1fe), std::byte{0xee});
    EXPECT_EQ(this->all_bytes(), expected);
    EXPECT_EQ(this->memory_.take_dirty(0), (Numbers{0, 1, 2, 3}));
    EXPECT_EQ(this->memory_.take_dirty(1), (Numbers{0, 1, 2, 3}));

    ASSERT_TRUE(view.fill(GuestAddress{last_address}, std::byte{0xdd}, 1));
    expected.back() = std::byte{0xdd};
    EXPECT_EQ(this->all_bytes(), expected);
    EXPECT_EQ(this->memory_.take_dirty(8), Numbers{3});
    EXPECT_TRUE(this->is_clean());
}

TYPED_TEST(ByteAccessTest, CopiesInsideTheGuestHoweverTheRangesLie) {
    constexpr std::uint64_t size = 9001;
    TestMap memory;
    memory.shifted_ram(0x10000, size, 0).shifted_ram(0x10000 + size, size, 0);
    TypeParam holder{memory.map()};
    auto& view = *holder;
    for (const std::uint64_t from : Numbers{0, 1, 4095, size - 2, 8000}) {
        for (const std::uint64_t to : Numbers{0, 3, 4096, 4097, size - 1, size + 5, 8191}) {
            for (const std::uint64_t count : Numbers{1, 64, 65, 4096, 4097, 8193}) {
                SCOPED_TRACE(::testing::Message() << from << " to " << to << ", " << count);
                memory.count_up();
                std::vector<std::byte> expected = counted_bytes(2 * size);
                std::memmove(expected.data() + to, expected.data() + from, count);
                ASSERT_TRUE(view.copy(GuestAddress{0x10000 + to}, GuestAddress{0x10000 + from}, count));
                ASSERT_TRUE(std::ranges::equal(memory.bytes(0), std::span{expected}.first(size)));
                ASSERT_TRUE(std::ranges::equal(memory.bytes(1), std::span{expected}.last(size)));
            }
        }
    }
}

TYPED_TEST(ByteAccessTest, CopyLeavesEverythingAsItWasWhenEitherRangeRefuses) {
    auto& view = *this->view_;
    const std::vector<std::byte> before = this->all_bytes();
    const auto copy = [&](std::uint64_t to, std::uint64_t from, std::uint64_t count) {
        return view.copy(GuestAddress{to}, GuestAddress{from}, count).error();
    };
    EXPECT_EQ(copy(0x1000, 0x11f0, 32), (AccessError{AccessReason::hole, Access::read, 0x1200, 0}));
    EXPECT_EQ(copy(0x11f0, 0x1000, 32), (AccessError{AccessReason::hole, Access::write, 0x1200, 0}));
    EXPECT_EQ(copy(0x14ff, 0x1000, 2), (AccessError{AccessReason::read_only, Access::write, 0x1500, 0}));
    EXPECT_EQ(copy(0x16ff, 0x1000, 2), (AccessError{AccessReason::device, Access::write, 0x1700, 0}));
    EXPECT_EQ(copy(0x1000, 0x16ff, 2), (AccessError{AccessReason::device, Access::read, 0x1700, 0}));
    EXPECT_EQ(copy(0x1000, last_address, 2),
              (AccessError{AccessReason::overflow, Access::read, last_address, 0}));
    EXPECT_EQ(this->all_bytes(), before);
    EXPECT_TRUE(this->is_clean());

    ASSERT_TRUE(view.copy(GuestAddress{0x10fe}, GuestAddress{0x1580}, 4));  // out of ROM
    EXPECT_TRUE(std::ranges::equal(this->memory_.bytes(1).first(2), this->memory_.bytes(3).subspan(0x82, 2)));
    EXPECT_EQ(this->memory_.take_dirty(0), Numbers{3});
    EXPECT_EQ(this->memory_.take_dirty(1), Numbers{0});
    EXPECT_TRUE(this->is_clean());
}

TYPED_TEST(ByteAccessTest, ComparesAsMemcmpDoes) {
    auto& view = *this->view_;
    constexpr std::uint64_t size = 0x200;
    std::vector<std::byte> other = counted_bytes(size);
    EXPECT_EQ(*view.compare(GuestAddress{0x1000}, other), std::strong_ordering::equal);
    for (const std::size_t place : {0U, 1U, 0xffU, 0x100U, 0x1ffU}) {
        SCOPED_TRACE(place);
        std::vector<std::byte> changed = other;
        changed[place] = std::byte{0xff};  // unsigned: above all others
        if (place + 1 < size) changed.back() = std::byte{0};
        EXPECT_EQ(*view.compare(GuestAddress{0x1000}, changed), std::strong_ordering::less);
    }
    other[0x100] = std::byte{0};
    EXPECT_EQ(*view.compare(GuestAddress{0x1000}, other), std::strong_ordering::greater);
    EXPECT_TRUE(this->is_clean());
}

TYPED_TEST(ByteAccessTest, ComparesAllOrNothingWhereverTheFirstDifferenceIs) {
    TestMap memory;
    memory.ram(0, 2000);
    TypeParam holder{memory.map()};
    for (const std::size_t place : {0U, 600U, 1990U}) {
        std::vector<std::byte> other(2001);
        other[place] = std::byte{1};
        EXPECT_EQ((*holder).compare(GuestAddress{0}, other).error(),
                  (AccessError{AccessReason::out_of_range, Access::read, 2000, 0}));
        other.pop_back();
        EXPECT_EQ(*(*holder).compare(GuestAddress{0}, other), std::strong_ordering::less);
    }
}

TYPED_TEST(ByteAccessTest, ReadsAStringUpToItsNul) {
    auto& view = *this->view_;
    const auto put = [&](std::uint64_t address, std::string_view text) {
        ASSERT_TRUE(view.write_bytes(GuestAddress{address}, bytes_of(text)));
    };
    const auto read = [&](std::uint64_t address, std::size_t limit) {
        return view.read_string(GuestAddress{address}, limit);
    };
    ASSERT_TRUE(view.fill(GuestAddress{0x1000}, std::byte{'x'}, 0x200));
    put(0x1000, {"\0", 1});
    EXPECT_EQ(*read(0x1000, 1), "");
    put(0x10fc, {"border\0", 7});
    EXPECT_EQ(*read(0x10fc, 7), "border");  // the NUL is the last byte that is allowed
    EXPECT_EQ(*read(0x10fc, 1000), "border");
    EXPECT_EQ(read(0x10fc, 6).error(), (AccessError{AccessReason::unterminated, Access::read, 0x10fc, 6}));
    put(0x11fc, {"end\0", 4});
    EXPECT_EQ(*read(0x11fc, max_size), "end");  // behind the NUL is a hole
    put(0x11fc, "end!");
    EXPECT_EQ(read(0x11fc, 100).error(), (AccessError{AccessReason::hole, Access::read, 0x1200, 4}));
    EXPECT_EQ(read(0x11fc, 4).error(), (AccessError{AccessReason::unterminated, Access::read, 0x11fc, 4}));
    EXPECT_EQ(read(0x1200, 100).error(), (AccessError{AccessReason::hole, Access::read, 0x1200, 0}));
    put(0x16f8, "no end!!");
    EXPECT_EQ(read(0x16f8, 100).error(), (AccessError{AccessReason::device, Access::read, 0x1700, 8}));

    put(last_address - 3, {"top\0", 4});
    EXPECT_EQ(*read(last_address - 3, 100), "top");
    put(last_address - 3, "top!");
    EXPECT_EQ(read(last_address - 3, 4).error().reason(), AccessReason::unterminated);
    EXPECT_EQ(read(last_address - 3, 5).error(),
              (AccessError{AccessReason::overflow, Access::read, last_address - 3, 4}));
}

TYPED_TEST(ByteAccessTest, ReadsStringsOfAnyLength) {
    TestMap memory;
    memory.ram(0, 700).ram(700, 3000);
    TypeParam holder{memory.map()};
    for (const std::size_t length : {0U, 1U, 511U, 512U, 513U, 699U, 700U, 701U, 1024U, 3000U}) {
        SCOPED_TRACE(length);
        const std::string text(length, 'y');
        ASSERT_TRUE((*holder).write_bytes(GuestAddress{0}, bytes_of(text)));
        ASSERT_TRUE((*holder).fill(GuestAddress{length}, std::byte{0}, 1));
        EXPECT_EQ(*(*holder).read_string(GuestAddress{0}, length + 1), text);
        const AccessError expected{AccessReason::unterminated, Access::read, 0, length};
        EXPECT_EQ((*holder).read_string(GuestAddress{0}, length).error(), expected);
    }
}

TYPED_TEST(ByteAccessTest, ChecksARangeWithoutTouchingIt) {
    auto& view = *this->view_;
    EXPECT_TRUE(view.check_range(GuestAddress{0x1000}, 0x200, Access::write));
    EXPECT_TRUE(view.check_range(GuestAddress{0x1400}, 0x300, Access::read));
    EXPECT_TRUE(view.check_range(GuestAddress{this->top}, 0x100, Access::write));
    EXPECT_TRUE(view.check_range(GuestAddress{last_address}, 1, Access::write));
    EXPECT_EQ(view.check_range(GuestAddress{0x1400}, 0x300, Access::write).error(),
              (AccessError{AccessReason::read_only, Access::write, 0x1500, 0}));
    EXPECT_EQ(view.check_range(GuestAddress{0}, max_size, Access::read).error().reason(), AccessReason::hole);
    EXPECT_TRUE(this->is_clean());
}

TYPED_TEST(ByteAccessTest, MarksThePagesThatItWroteAndNoOther) {
    auto& view = *this->view_;
    const std::vector<std::byte> bytes = counted_bytes(0x100);
    const auto write = [&](std::uint64_t address, std::size_t count) {
        ASSERT_TRUE(view.write_bytes(GuestAddress{address}, std::span{bytes}.first(count)));
    };
    write(0x103f, 1);
    EXPECT_EQ(this->memory_.take_dirty(0), Numbers{0});
    write(0x103f, 2);
    EXPECT_EQ(this->memory_.take_dirty(0), (Numbers{0, 1}));
    write(0x1040, 0x40);
    EXPECT_EQ(this->memory_.take_dirty(0), Numbers{1});
    write(0x10c0, 0x41);
    EXPECT_EQ(this->memory_.take_dirty(0), Numbers{3});
    EXPECT_EQ(this->memory_.take_dirty(1), Numbers{0});
    write(0x1880, 1);
    EXPECT_EQ(this->memory_.take_dirty(6), Numbers{2});
    write(0x1900, 5);
    EXPECT_EQ(this->memory_.take_dirty(7), Numbers{0});
    std::vector<std::byte> buffer(0x100);
    ASSERT_TRUE(view.read_bytes(GuestAddress{0x1000}, buffer));
    EXPECT_TRUE(this->is_clean());
}

TYPED_TEST(ByteAccessTest, MarksInTheTrackerThatTwoPlacesShare) {
    TestMap memory;
    memory.ram(0x1000, 0x1000);
    memory.add(memory.region(0).placed_at(GuestAddress{0x8000}).value());
    GM_CHECK(memory.region(0).dirty().start(testing::dirty_page_bytes));
    TypeParam holder{memory.map()};
    const std::vector<std::byte> bytes = counted_bytes(3, 1);
    ASSERT_TRUE((*holder).write_bytes(GuestAddress{0x8040}, bytes));
    std::array<std::byte, 3> there{};
    ASSERT_TRUE((*holder).read_bytes(GuestAddress{0x1040}, there));
    EXPECT_TRUE(std::ranges::equal(there, bytes));
    EXPECT_EQ(memory.take_dirty(0), Numbers{1});
}

// ---- memory that the host has lost ----

class ByteAccessLostTest : public LostMemoryTest {
protected:
    static constexpr std::uint64_t border = LostMemory::base + 2 * page_size_bytes;

    ByteAccessLostTest() {
        lost_.map().count_up();
        lost_.lose_from(2);
    }
    [[nodiscard]] static AccessError fault(Access access, std::uint64_t count_done) {
        return AccessError{AccessReason::fault, access, border, count_done};
    }
    /// The bytes of the two good pages of the file, and the page below it.
    [[nodiscard]] std::vector<std::byte> good_bytes() {
        std::vector<std::byte> all(lost_.map().bytes(0).begin(), lost_.map().bytes(0).end());
        all.insert(all.end(), lost_.bytes().begin(), lost_.bytes().begin() + 2 * page_size_bytes);
        return all;
    }
    /// The last page of the good ones, in the log's numbers.
    static constexpr std::uint64_t last_good = 2 * page_size_bytes / testing::dirty_page_bytes - 1;

    static constexpr std::uint64_t counts[] = {0, 1, 7, 8, 63, 64, 65, 100, 511, 513, 4096, 5000};

    GuestMemory memory_{lost_.map().map()};
};

TEST_P(ByteAccessLostTest, ReadsExactlyTheBytesBeforeTheLostPage) {
    const std::vector<std::byte> before = good_bytes();
    for (const std::uint64_t count : counts) {
        for (const std::uint64_t more : {1U, 30U, 5000U}) {
            SCOPED_TRACE(::testing::Message() << count << " good bytes, " << more << " lost ones");
            std::vector<std::byte> to(count + more, std::byte{0xee});
            const GuestAddress address{border - count};
            EXPECT_EQ(memory_.read_bytes(address, to).error(), fault(Access::read, count));
            EXPECT_TRUE(std::ranges::equal(std::span{to}.first(count), std::span{before}.last(count)));
            std::ranges::fill(to, std::byte{0xee});
            const auto some = memory_.read_some(address, to);
            ASSERT_EQ(some.has_value(), count != 0);
            EXPECT_EQ(some.value_or(0), count);
            EXPECT_TRUE(std::ranges::equal(std::span{to}.first(count), std::span{before}.last(count)));
        }
    }
    EXPECT_TRUE(lost_.map().take_dirty(LostMemory::number).empty());
}

TEST_P(ByteAccessLostTest, WritesAndMarksExactlyTheBytesBeforeTheLostPage) {
    for (const std::uint64_t count : counts) {
        for (const std::uint64_t more : {1U, 30U, 5000U}) {
            SCOPED_TRACE(::testing::Message() << count << " good bytes, " << more << " lost ones");
            const GuestAddress address{border - count};
            const std::vector<std::byte> from = counted_bytes(count + more, 7);
            const auto expect_done = [&](std::span<const std::byte> written) {
                const auto good = lost_.bytes().first(2 * page_size_bytes);
                EXPECT_TRUE(std::ranges::equal(good.last(count), written.first(count)));
                EXPECT_TRUE(is_all(good.first(good.size() - count), std::byte{0x11}));
                const Numbers dirty = lost_.map().take_dirty(LostMemory::number);
                const std::uint64_t dirty_pages = (count + 63) / 64;
                ASSERT_EQ(dirty.size(), dirty_pages);
                if (count != 0) {
                    EXPECT_EQ(dirty.back(), last_good);
                }
                std::ranges::fill(good, std::byte{0x11});
            };
            std::ranges::fill(lost_.bytes().first(2 * page_size_bytes), std::byte{0x11});
            EXPECT_EQ(memory_.write_bytes(address, from).error(), fault(Access::write, count));
            expect_done(from);
            const auto some = memory_.write_some(address, from);
            ASSERT_EQ(some.has_value(), count != 0);
            EXPECT_EQ(some.value_or(0), count);
            expect_done(from);
            EXPECT_EQ(memory_.fill(address, std::byte{0x77}, count + more).error(),
                      fault(Access::write, count));
            expect_done(std::vector<std::byte>(count, std::byte{0x77}));
        }
    }
}

TEST_P(ByteAccessLostTest, CopiesAsMuchAsItSays) {
    for (const std::uint64_t count : {0U, 1U, 63U, 65U, 1000U, 4000U}) {
        SCOPED_TRACE(count);
        const auto target = lost_.map().bytes(0);
        std::ranges::fill(target, std::byte{0x22});
        const auto out = memory_.copy(LostMemory::page(0).saturating_sub(page_size_bytes),
                                      GuestAddress{border - count}, count + 20);
        ASSERT_FALSE(out);
        const std::uint64_t done = out.error().count_done();
        EXPECT_EQ(out.error(), fault(Access::read, done));
        ASSERT_LE(done, count);
        EXPECT_TRUE(
            std::ranges::equal(target.first(done), lost_.bytes().subspan(2 * page_size_bytes - count, done)));
        EXPECT_TRUE(is_all(target.subspan(done), std::byte{0x22}));
        EXPECT_EQ(lost_.map().take_dirty(0).empty(), done == 0);
    }
    const GuestAddress low{LostMemory::base};
    EXPECT_EQ(memory_.copy(GuestAddress{border - 100}, low, 200).error(), fault(Access::write, 100));
    EXPECT_TRUE(
        std::ranges::equal(lost_.bytes().subspan(2 * page_size_bytes - 100, 100), lost_.bytes().first(100)));
    // From the top down the lost page comes first.
    EXPECT_EQ(memory_.copy(GuestAddress{LostMemory::base + 8}, low, 9000).error().count_done(), 0U);
}

TEST_P(ByteAccessLostTest, ComparesWhatComesBeforeTheLostPage) {
    const std::vector<std::byte> good = good_bytes();
    std::vector<std::byte> other(good.end() - 100, good.end());
    other.resize(200);
    const GuestAddress address{border - 100};
    EXPECT_EQ(memory_.compare(address, other).error(), fault(Access::read, 100));
    other[99] ^= std::byte{1};
    EXPECT_NE(*memory_.compare(address, other), std::strong_ordering::equal);
    EXPECT_EQ(memory_.compare(GuestAddress{border}, other).error(), fault(Access::read, 0));
}

TEST_P(ByteAccessLostTest, ReadsAStringThatEndsBeforeTheLostPage) {
    for (const std::size_t length : {0U, 1U, 600U}) {
        SCOPED_TRACE(length);
        const std::string text(length, 'z');
        const GuestAddress address{border - length - 1};
        ASSERT_TRUE(memory_.write_bytes(address, bytes_of(text)));
        ASSERT_TRUE(memory_.fill(GuestAddress{border - 1}, std::byte{0}, 1));
        EXPECT_EQ(*memory_.read_string(address, 10000), text);
        ASSERT_TRUE(memory_.fill(GuestAddress{border - 1}, std::byte{'z'}, 1));
        EXPECT_EQ(memory_.read_string(address, 10000).error(), fault(Access::read, length + 1));
    }
}

TEST_P(ByteAccessLostTest, GoesOnInTheNextRegionOnceThePagesAreBack) {
    // Touching nothing, it sees nothing lost; the file's size tells.
    EXPECT_TRUE(memory_.check_range(GuestAddress{LostMemory::base}, LostMemory::size_bytes, Access::write));
    EXPECT_EQ(lost_.memory().check_whole().has_value(), GetParam() == testing::LostBy::protecting_pages);
    lost_.find_again();
    EXPECT_TRUE(lost_.memory().check_whole());
    const std::vector<std::byte> from = counted_bytes(LostMemory::size_bytes + 2 * page_size_bytes, 3);
    const GuestAddress address{LostMemory::base - page_size_bytes};
    ASSERT_TRUE(memory_.write_bytes(address, from));
    std::vector<std::byte> to(from.size());
    ASSERT_TRUE(memory_.read_bytes(address, to));
    EXPECT_EQ(to, from);
}

INSTANTIATE_TEST_SUITE_P(, ByteAccessLostTest, testing::all_ways_to_lose());

}  // namespace
}  // namespace guestmem
