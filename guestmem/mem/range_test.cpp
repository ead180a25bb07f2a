// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/range.hpp"

#include <gtest/gtest.h>

#include <optional>
#include <set>
#include <vector>

namespace guestmem {
namespace {

constexpr std::uint64_t top = 0xffff'ffff'ffff'ffff;

GuestRange range(std::uint64_t base, std::uint64_t size_bytes) {
    return GuestRange::create(GuestAddress{base}, size_bytes).value();
}

TEST(Range, IsNeverEmptyAndNeverWraps) {
    EXPECT_EQ(GuestRange::create(GuestAddress{0}, 0), std::nullopt);
    EXPECT_EQ(GuestRange::create(GuestAddress{1}, top), range(1, top));
    EXPECT_EQ(GuestRange::create(GuestAddress{2}, top), std::nullopt);
    EXPECT_EQ(GuestRange::create(GuestAddress::max(), 1)->last(), GuestAddress::max());
    EXPECT_EQ(GuestRange::create(GuestAddress::max(), 2), std::nullopt);
}

TEST(Range, LastIsInside) {
    const GuestRange pages = range(0x1000, 0x2000);
    EXPECT_EQ(pages.base(), GuestAddress{0x1000});
    EXPECT_EQ(pages.last(), GuestAddress{0x2fff});
    EXPECT_EQ(pages.size_bytes(), 0x2000U);
}

TEST(Range, FromFirstToLastHasBoth) {
    EXPECT_EQ(GuestRange::from_first_last(GuestAddress{5}, GuestAddress{5}), range(5, 1));
    EXPECT_EQ(GuestRange::from_first_last(GuestAddress{1}, GuestAddress::max()), range(1, top));
    EXPECT_EQ(GuestRange::from_first_last(GuestAddress{6}, GuestAddress{5}), std::nullopt);
    EXPECT_EQ(GuestRange::from_first_last(GuestAddress{0}, GuestAddress::max()), std::nullopt)
        << "2^64 bytes have no 64-bit number";
}

TEST(Range, ContainsItsFirstAndLastAddressAndNoNeighbor) {
    const GuestRange high = range(top - 0xfff, 0x1000);
    EXPECT_TRUE(high.contains(GuestAddress{top - 0xfff}));
    EXPECT_TRUE(high.contains(GuestAddress::max()));
    EXPECT_FALSE(high.contains(GuestAddress{top - 0x1000}));
    EXPECT_FALSE(high.contains(GuestAddress{0}));
}

TEST(Range, ContainsRangesThatEndWhereItEnds) {
    const GuestRange pages = range(0x1000, 0x2000);
    EXPECT_TRUE(pages.contains(pages));
    EXPECT_TRUE(pages.contains(range(0x2fff, 1)));
    EXPECT_FALSE(pages.contains(range(0x2fff, 2)));
    EXPECT_FALSE(pages.contains(range(0xfff, 2)));
    EXPECT_FALSE(pages.contains(range(0x1001, 0x2000)));
    EXPECT_FALSE(range(0, 1).contains(range(1, top)));
}

TEST(Range, IsFollowedByWhatBeginsRightBehindIt) {
    EXPECT_TRUE(range(0, 0x1000).is_followed_by(range(0x1000, 1)));
    EXPECT_FALSE(range(0, 0x1000).is_followed_by(range(0x1001, 1)));
    EXPECT_FALSE(range(0, 0x1000).is_followed_by(range(0xfff, 1)));
    EXPECT_FALSE(range(top, 1).is_followed_by(range(0, 1))) << "nothing follows the last address";
}

TEST(Range, OrdersByBaseThenBySize) {
    EXPECT_LT(range(1, 5), range(2, 1));
    EXPECT_LT(range(1, 5), range(1, 6));
}

/// Ranges of up to 5 addresses, at the low end of the space and at the high end of it.
std::vector<GuestRange> small_ranges() {
    std::vector<GuestRange> ranges;
    for (std::uint64_t size = 1; size <= 5; ++size)
        for (std::uint64_t base = 0; base + size <= 8; ++base) {
            ranges.push_back(range(base, size));
            ranges.push_back(range(top - 7 + base, size));
        }
    return ranges;
}

std::set<std::uint64_t> addresses_in(const GuestRange& range) {
    std::set<std::uint64_t> addresses;
    for (std::uint64_t i = 0; i < range.size_bytes(); ++i) addresses.insert(range.base().value() + i);
    return addresses;
}

TEST(Range, OverlapContainmentAndIntersectionAreThoseOfSets) {
    const auto ranges = small_ranges();
    for (const GuestRange& a : ranges) {
        for (const GuestRange& b : ranges) {
            const std::set<std::uint64_t> set_a = addresses_in(a);
            const std::set<std::uint64_t> set_b = addresses_in(b);
            std::set<std::uint64_t> both;
            for (const std::uint64_t address : set_a)
                if (set_b.contains(address)) both.insert(address);
            SCOPED_TRACE(::testing::Message() << a.base().value() << "+" << a.size_bytes() << ", "
                                              << b.base().value() << "+" << b.size_bytes());
            ASSERT_EQ(a.overlaps(b), !both.empty());
            ASSERT_EQ(a.contains(b), both == set_b);
            const auto intersection = a.intersection(b);
            ASSERT_EQ(intersection ? addresses_in(*intersection) : std::set<std::uint64_t>{}, both);
            for (const std::uint64_t address : set_b)
                ASSERT_EQ(a.contains(GuestAddress{address}), set_a.contains(address));
        }
    }
}

}  // namespace
}  // namespace guestmem
