// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/numbers.hpp"

#include <gmock/gmock.h>

namespace guestmem::vmm {
namespace {

using ::testing::HasSubstr;

std::uint64_t number_of(std::string_view text) {
    const auto number = read_number(text);
    EXPECT_TRUE(number) << text;
    return number ? *number : 0;
}

std::string problem_of(std::string_view text) {
    const auto number = read_number(text);
    return number ? "none" : number.error().what;
}

TEST(Numbers, AreDecimalOrHexadecimal) {
    EXPECT_EQ(number_of("0"), 0U);
    EXPECT_EQ(number_of("4096"), 4096U);
    EXPECT_EQ(number_of("0xf0000"), 0xf0000U);
    EXPECT_EQ(number_of("0XaBc"), 0xabcU);
    EXPECT_EQ(number_of("0x000010"), 16U);
}

TEST(Numbers, HaveUnitsInEitherCase) {
    EXPECT_EQ(number_of("1k"), 1024U);
    EXPECT_EQ(number_of("64K"), 65'536U);
    EXPECT_EQ(number_of("1m"), std::uint64_t{1} << 20);
    EXPECT_EQ(number_of("192M"), std::uint64_t{192} << 20);
    EXPECT_EQ(number_of("3g"), std::uint64_t{3} << 30);
    EXPECT_EQ(number_of("2T"), std::uint64_t{2} << 40);
    EXPECT_EQ(number_of("0K"), 0U);
}

TEST(Numbers, EndAtTwoToTheSixtyFour) {
    EXPECT_EQ(number_of("18446744073709551615"), ~std::uint64_t{0});
    EXPECT_EQ(number_of("0xffffffffffffffff"), ~std::uint64_t{0});
    EXPECT_EQ(number_of("18014398509481983K"), ~std::uint64_t{0} - 1023);
    EXPECT_EQ(number_of("16777215T"), std::uint64_t{16'777'215} << 40);
    for (const char* text : {"18446744073709551616", "0x10000000000000000", "18014398509481984K", "16777216T",
                             "99999999999999999999999999999G"})
        EXPECT_THAT(problem_of(text), HasSubstr("is beyond 2^64 - 1")) << text;
}

TEST(Numbers, AreNothingElse) {
    for (const char* text : {"", "K", "0x", "x10", "-1", "+1", "1.5G", "1 ", " 1", "10KB", "10KiB", "0x10M",
                             "1P", "1e6", "0b1", "0xfg", "K1", "1_000"})
        EXPECT_THAT(problem_of(text), HasSubstr("is no number")) << text;
}

TEST(Numbers, OfSeveralDigitsDoNotBeginWithZero) {
    EXPECT_THAT(problem_of("010"), HasSubstr("octal or decimal?"));
    EXPECT_THAT(problem_of("00"), HasSubstr("octal or decimal?"));
    EXPECT_THAT(problem_of("01M"), HasSubstr("octal or decimal?"));
}

TEST(Numbers, AreWrittenAsTheyAreRead) {
    EXPECT_EQ(write_length(0), "0");
    EXPECT_EQ(write_length(1023), "1023");
    EXPECT_EQ(write_length(1024), "1K");
    EXPECT_EQ(write_length(std::uint64_t{1536} << 20), "1536M");
    EXPECT_EQ(write_length(std::uint64_t{1} << 40), "1T");
    EXPECT_EQ(write_address(0xf8000000), "0xf8000000");
    for (const std::uint64_t number : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{0xfffff000},
                                       std::uint64_t{5} << 30, std::uint64_t{1} << 63, ~std::uint64_t{0}}) {
        EXPECT_EQ(number_of(write_length(number)), number);
        EXPECT_EQ(number_of(write_address(number)), number);
    }
}

}  // namespace
}  // namespace guestmem::vmm
