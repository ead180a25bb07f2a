// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/smmu_numbers.hpp"

#include <gtest/gtest.h>

namespace guestmem::dma {
namespace {

std::uint64_t value_of(std::string_view text, NumberStyle style) {
    const auto number = parse_smmu_number(text, style);
    EXPECT_TRUE(number) << text;
    return number ? *number : ~std::uint64_t{0};
}

TEST(SmmuNumbers, AnAddressIsHexadecimalAndASizeIsDecimal) {
    EXPECT_EQ(value_of("10", NumberStyle::address), 0x10U);
    EXPECT_EQ(value_of("10", NumberStyle::size), 10U);
    EXPECT_EQ(value_of("10", NumberStyle::plain), 10U);
    EXPECT_EQ(value_of("fed90000", NumberStyle::address), 0xfed90000U);
}

TEST(SmmuNumbers, APrefixWeighsMoreThanTheStyle) {
    for (const NumberStyle style : {NumberStyle::address, NumberStyle::size, NumberStyle::plain}) {
        EXPECT_EQ(value_of("0x10", style), 16U);
        EXPECT_EQ(value_of("0X1f", style), 31U);
        EXPECT_EQ(value_of("0d10", style), 10U);
        EXPECT_EQ(value_of("0D10", style), 10U);
    }
}

TEST(SmmuNumbers, ASuffixMultipliesAddressesAndSizesBy1024AndNoOtherNumber) {
    EXPECT_EQ(value_of("4K", NumberStyle::size), 4096U);
    EXPECT_EQ(value_of("4k", NumberStyle::size), 4096U);
    EXPECT_EQ(value_of("0x10M", NumberStyle::size), 16U << 20);
    EXPECT_EQ(value_of("2g", NumberStyle::address), std::uint64_t{2} << 30);
    EXPECT_EQ(value_of("0d10G", NumberStyle::address), std::uint64_t{10} << 30);
    EXPECT_FALSE(parse_smmu_number("4K", NumberStyle::plain));
    EXPECT_FALSE(parse_smmu_number("4T", NumberStyle::size));
    EXPECT_FALSE(parse_smmu_number("4KK", NumberStyle::size));
}

TEST(SmmuNumbers, WhatIsNoNumberIsRefused) {
    for (const char* text : {"", "0x", "0d", "K", "0xK", "-1", "+1", "1.5", "0x-1", " 1", "1 ", "g1"})
        EXPECT_FALSE(parse_smmu_number(text, NumberStyle::size)) << text;
    EXPECT_FALSE(parse_smmu_number("1f", NumberStyle::size));
    EXPECT_FALSE(parse_smmu_number("0d1f", NumberStyle::address));
}

TEST(SmmuNumbers, TheLastNumberThatFitsIsTakenAndTheNextIsOutOfRange) {
    EXPECT_EQ(value_of("ffffffffffffffff", NumberStyle::address), ~std::uint64_t{0});
    EXPECT_EQ(value_of("17179869183G", NumberStyle::size),
              ~std::uint64_t{0} - ((std::uint64_t{1} << 30) - 1));
    for (const char* text : {"0x10000000000000000", "17179869184G", "18446744073709551616"}) {
        const auto number = parse_smmu_number(text, NumberStyle::size);
        ASSERT_FALSE(number) << text;
        EXPECT_EQ(number.error().code(), Errc::out_of_range) << text;
    }
}

}  // namespace
}  // namespace guestmem::dma
