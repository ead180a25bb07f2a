// SPDX-License-Identifier: Apache-2.0
#include "guestmem/base/sizes.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <string_view>

namespace guestmem {
namespace {

constexpr std::uint64_t top = std::numeric_limits<std::uint64_t>::max();

TEST(ParseSize, ReadsNumbersAndUnits) {
    struct Row {
        std::string_view text;
        std::uint64_t size_bytes;
    };
    constexpr std::array<Row, 14> rows{{{"0", 0},
                                        {"1", 1},
                                        {"4096", 4096},
                                        {"12B", 12},
                                        {"64K", 64 << 10},
                                        {"4M", 4 << 20},
                                        {"4MiB", 4 << 20},
                                        {"4MB", 4 << 20},
                                        {"4m", 4 << 20},
                                        {"4miB", 4 << 20},
                                        {"1G", std::uint64_t{1} << 30},
                                        {"1T", std::uint64_t{1} << 40},
                                        {"0T", 0},
                                        {"007K", 7 << 10}}};
    for (const Row& row : rows) {
        const auto size = parse_size(row.text);
        ASSERT_TRUE(size) << row.text << ": " << size.error().message();
        EXPECT_EQ(*size, row.size_bytes) << row.text;
    }
}

TEST(ParseSize, RefusesWhatIsNotASize) {
    constexpr std::array<std::string_view, 16> texts{
        "",     "M",   "-1", "+1",  " 4M", "4M ", "4 M",   "4.5M",
        "0x10", "4MM", "4X", "4Mi", "4Mb", "4,0", "4MiBs", std::string_view{"4\0M", 3}};
    for (const std::string_view text : texts) {
        const auto size = parse_size(text);
        ASSERT_FALSE(size) << text;
        EXPECT_EQ(size.error().code(), Errc::invalid_argument) << text;
        EXPECT_TRUE(size.error().message().starts_with("size '")) << size.error().message();
    }
}

TEST(ParseSize, OverflowIsAnErrorAndNotAWrap) {
    EXPECT_EQ(*parse_size("18446744073709551615"), top);
    EXPECT_EQ(*parse_size("16777215T"), std::uint64_t{16777215} << 40);

    for (const char* text :
         {"18446744073709551616", "16777216T", "18014398509481984K", "99999999999999999999999T"}) {
        const auto size = parse_size(text);
        ASSERT_FALSE(size) << text;
        EXPECT_NE(size.error().message().find("beyond 2^64"), std::string::npos) << size.error().message();
    }
}

TEST(FormatSize, UsesTheLargestUnitThatDivides) {
    EXPECT_EQ(format_size(0), "0");
    EXPECT_EQ(format_size(1), "1");
    EXPECT_EQ(format_size(1023), "1023");
    EXPECT_EQ(format_size(1024), "1K");
    EXPECT_EQ(format_size(1025), "1025");
    EXPECT_EQ(format_size(4 << 20), "4M");
    EXPECT_EQ(format_size((4 << 20) + 4096), "4100K");
    EXPECT_EQ(format_size(std::uint64_t{1} << 40), "1T");
    EXPECT_EQ(format_size(std::uint64_t{1} << 63), "8388608T");
    EXPECT_EQ(format_size(top), "18446744073709551615");
}

TEST(FormatSize, IsReadBackAsTheSameSize) {
    constexpr std::uint64_t seed = 20'001;
    std::mt19937_64 random{seed};
    for (int turn = 0; turn < 2'000; ++turn) {
        const std::uint64_t size = (random() >> (random() % 64)) << (random() % 41);
        const auto back = parse_size(format_size(size));
        ASSERT_TRUE(back) << "seed " << seed << ", size " << size;
        EXPECT_EQ(*back, size) << "seed " << seed;
    }
}

TEST(RoundUp, ReachesTheNextMultipleAndStaysOnOne) {
    EXPECT_EQ(round_up(0, 4096), 0U);
    EXPECT_EQ(round_up(1, 4096), 4096U);
    EXPECT_EQ(round_up(4095, 4096), 4096U);
    EXPECT_EQ(round_up(4096, 4096), 4096U);
    EXPECT_EQ(round_up(4097, 4096), 8192U);
    EXPECT_EQ(round_up(12345, 1), 12345U);
}

TEST(RoundUp, BeyondTheLastMultipleThereIsNothing) {
    EXPECT_EQ(round_up(top - 4095, 4096), top - 4095);
    EXPECT_EQ(round_up(top - 4094, 4096), std::nullopt);
    EXPECT_EQ(round_up(top, 4096), std::nullopt);
    EXPECT_EQ(round_up(top, 1), top);
    EXPECT_EQ(round_up(1, std::uint64_t{1} << 63), std::uint64_t{1} << 63);
    EXPECT_EQ(round_up((std::uint64_t{1} << 63) + 1, std::uint64_t{1} << 63), std::nullopt);
}

TEST(RoundUpToPowerOfTwo, ReachesTwoToThe63AndNotFurther) {
    EXPECT_EQ(round_up_to_power_of_two(0), 1U);
    EXPECT_EQ(round_up_to_power_of_two(1), 1U);
    EXPECT_EQ(round_up_to_power_of_two(3), 4U);
    EXPECT_EQ(round_up_to_power_of_two(4096), 4096U);
    EXPECT_EQ(round_up_to_power_of_two(4097), 8192U);
    EXPECT_EQ(round_up_to_power_of_two(std::uint64_t{1} << 63), std::uint64_t{1} << 63);
    EXPECT_EQ(round_up_to_power_of_two((std::uint64_t{1} << 63) + 1), std::nullopt);
    EXPECT_EQ(round_up_to_power_of_two(top), std::nullopt);
}

TEST(RoundUpDeathTest, AGranuleThatIsNoPowerOfTwoIsOurOwnBug) {
    EXPECT_DEATH(static_cast<void>(round_up(1, 0)), "check failed");
    EXPECT_DEATH(static_cast<void>(round_up(1, 3)), "check failed");
}

}  // namespace
}  // namespace guestmem
