// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/address.hpp"

#include <gtest/gtest.h>

#include <concepts>
#include <optional>
#include <random>
#include <type_traits>

namespace guestmem {
namespace {

constexpr std::uint64_t top = 0xffff'ffff'ffff'ffff;

// One address space, one type; an integer is no address.
static_assert(!std::convertible_to<std::uint64_t, GuestAddress>);
static_assert(!std::convertible_to<GuestAddress, std::uint64_t>);
static_assert(!std::constructible_from<GuestAddress, IoAddress>);
static_assert(!std::constructible_from<GuestAddress, HostAddress>);
static_assert(!std::constructible_from<IoAddress, GuestAddress>);
static_assert(!std::equality_comparable_with<GuestAddress, IoAddress>);
static_assert(std::is_trivially_copyable_v<GuestAddress>);
static_assert(sizeof(GuestAddress) == 8);

template <typename A, typename B>
concept Addable = requires(A a, B b) { a + b; };
static_assert(!Addable<GuestAddress, std::uint64_t>);
static_assert(!Addable<GuestAddress, GuestAddress>);

// All of it works at compile time.
static_assert(GuestAddress{0x1000}.checked_add(0x800) == GuestAddress{0x1800});

TEST(Address, CheckedAdditionReachesTheLastAddressAndNotFurther) {
    EXPECT_EQ(GuestAddress{0}.checked_add(top), GuestAddress::max());
    EXPECT_EQ(GuestAddress{1}.checked_add(top), std::nullopt);
    EXPECT_EQ(GuestAddress::max().checked_add(0), GuestAddress::max());
    EXPECT_EQ(GuestAddress::max().checked_add(1), std::nullopt);
    EXPECT_EQ(GuestAddress{top - 1}.checked_add(1), GuestAddress::max());
}

TEST(Address, CheckedSubtractionReachesZeroAndNotFurther) {
    EXPECT_EQ(GuestAddress::max().checked_sub(top), GuestAddress{0});
    EXPECT_EQ(GuestAddress{5}.checked_sub(5), GuestAddress{0});
    EXPECT_EQ(GuestAddress{5}.checked_sub(6), std::nullopt);
    EXPECT_EQ(GuestAddress{}.checked_sub(0), GuestAddress{0});
    EXPECT_EQ(GuestAddress{}.checked_sub(1), std::nullopt);
}

TEST(Address, OverflowingArithmeticSaysWhetherItWrapped) {
    EXPECT_EQ(GuestAddress::max().overflowing_add(1), (OverflowingAddress{GuestAddress{0}, true}));
    EXPECT_EQ(GuestAddress::max().overflowing_add(top), (OverflowingAddress{GuestAddress{top - 1}, true}));
    EXPECT_EQ(GuestAddress{1}.overflowing_add(top - 1), (OverflowingAddress{GuestAddress::max(), false}));
    EXPECT_EQ(GuestAddress{0}.overflowing_sub(1), (OverflowingAddress{GuestAddress::max(), true}));
    EXPECT_EQ(GuestAddress{1}.overflowing_sub(1), (OverflowingAddress{GuestAddress{0}, false}));
    EXPECT_EQ(GuestAddress{1}.overflowing_sub(0), (OverflowingAddress{GuestAddress{1}, false}));
}

TEST(Address, SaturatingArithmeticStopsAtTheEnds) {
    EXPECT_EQ(GuestAddress{top - 2}.saturating_add(2), GuestAddress::max());
    EXPECT_EQ(GuestAddress{top - 2}.saturating_add(3), GuestAddress::max());
    EXPECT_EQ(GuestAddress{2}.saturating_sub(2), GuestAddress{0});
    EXPECT_EQ(GuestAddress{2}.saturating_sub(3), GuestAddress{0});
    EXPECT_EQ(GuestAddress{2}.saturating_sub(1), GuestAddress{1});
}

TEST(Address, AnOffsetIsOnlyUpward) {
    EXPECT_EQ(GuestAddress{8}.checked_offset_from(GuestAddress{3}), 5U);
    EXPECT_EQ(GuestAddress{8}.checked_offset_from(GuestAddress{8}), 0U);
    EXPECT_EQ(GuestAddress{8}.checked_offset_from(GuestAddress{9}), std::nullopt);
    EXPECT_EQ(GuestAddress::max().checked_offset_from(GuestAddress{0}), top);
}

TEST(Address, AlignmentIsAPowerOfTwoOrNone) {
    EXPECT_TRUE(GuestAddress{0}.is_aligned(1));
    EXPECT_TRUE(GuestAddress{0x3000}.is_aligned(0x1000));
    EXPECT_FALSE(GuestAddress{0x3008}.is_aligned(0x1000));
    EXPECT_TRUE(GuestAddress{std::uint64_t{1} << 63}.is_aligned(std::uint64_t{1} << 63));
    for (const std::uint64_t no_power : {std::uint64_t{0}, std::uint64_t{3}, top}) {
        EXPECT_FALSE(GuestAddress{0}.is_aligned(no_power)) << no_power;
        EXPECT_EQ(GuestAddress{0}.checked_align_down(no_power), std::nullopt) << no_power;
        EXPECT_EQ(GuestAddress{0}.checked_align_up(no_power), std::nullopt) << no_power;
    }
}

TEST(Address, AligningGoesDownOrUpToTheNextMultiple) {
    EXPECT_EQ(GuestAddress{0x1fff}.checked_align_down(0x1000), GuestAddress{0x1000});
    EXPECT_EQ(GuestAddress{0x2000}.checked_align_down(0x1000), GuestAddress{0x2000});
    EXPECT_EQ(GuestAddress{0x1001}.checked_align_up(0x1000), GuestAddress{0x2000});
    EXPECT_EQ(GuestAddress{0x2000}.checked_align_up(0x1000), GuestAddress{0x2000});
    EXPECT_EQ(GuestAddress{top - 0xfff}.checked_align_up(0x1000), GuestAddress{top - 0xfff});
    EXPECT_EQ(GuestAddress{top - 0xffe}.checked_align_up(0x1000), std::nullopt) << "2^64 is no address";
    EXPECT_EQ(GuestAddress::max().checked_align_up(1), GuestAddress::max());
    EXPECT_EQ(GuestAddress::max().checked_align_down(0x1000), GuestAddress{top - 0xfff});
}

TEST(Address, MaskedKeepsTheBitsAskedFor) { EXPECT_EQ(GuestAddress{0x12345}.masked(0xfff), 0x345U); }

TEST(Address, OrdersByValueWithoutSign) {
    EXPECT_LT(GuestAddress{1}, GuestAddress{2});
    EXPECT_LT(GuestAddress{1}, GuestAddress::max());
    EXPECT_EQ(GuestAddress{}, GuestAddress{0});
}

TEST(Address, AllArithmeticAgreesWithA128BitSum) {
    __extension__ using Wide = unsigned __int128;
    constexpr std::uint64_t seed = 1;
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random{seed};
    for (int turn = 0; turn < 20'000; ++turn) {
        const std::uint64_t value = random() >> random() % 64;
        const std::uint64_t count =
            turn % 2 == 0 ? random() >> random() % 64 : top - value + random() % 3 - 1;
        const GuestAddress address{value};
        const Wide sum = Wide{value} + count;
        const bool wraps = sum > top;
        ASSERT_EQ(address.checked_add(count).has_value(), !wraps);
        ASSERT_EQ(address.overflowing_add(count),
                  (OverflowingAddress{GuestAddress{static_cast<std::uint64_t>(sum)}, wraps}));
        ASSERT_EQ(address.saturating_add(count).value(), wraps ? top : static_cast<std::uint64_t>(sum));
        ASSERT_EQ(address.checked_sub(count).has_value(), count <= value);
        ASSERT_EQ(address.overflowing_sub(count),
                  (OverflowingAddress{GuestAddress{value - count}, count > value}));
        ASSERT_EQ(address.saturating_sub(count).value(), count > value ? 0 : value - count);
    }
}

}  // namespace
}  // namespace guestmem
