// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/backends/size_text.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <random>
#include <string>

namespace guestmem {
namespace {

constexpr std::uint64_t max_value = std::numeric_limits<std::uint64_t>::max();

TEST(QemuSize, HasUnitsOfPowersOf1024) {
    const std::pair<const char*, std::uint64_t> sizes[] = {
        {"0", 0},
        {"1", 1},
        {"4096", 4096},
        {"5B", 5},
        {"5b", 5},
        {"1K", 1024},
        {"1k", 1024},
        {"3M", 3 << 20},
        {"3m", 3 << 20},
        {"2G", std::uint64_t{2} << 30},
        {"2g", std::uint64_t{2} << 30},
        {"7T", std::uint64_t{7} << 40},
        {"1P", std::uint64_t{1} << 50},
        {"15E", std::uint64_t{15} << 60},
        {"0x1000", 4096},
        {"0XfF", 255},
        {"010", 10},
        {"18446744073709551615", max_value},
        {"0xffffffffffffffff", max_value},
    };
    for (const auto& [text, size] : sizes) {
        const auto parsed = parse_qemu_size(text);
        ASSERT_TRUE(parsed) << text << ": " << parsed.error().message();
        EXPECT_EQ(*parsed, size) << text;
    }
}

TEST(QemuSize, AFractionIsExactDownToTheByte) {
    EXPECT_EQ(parse_qemu_size("1.5G").value(), (std::uint64_t{3} << 30) / 2);
    EXPECT_EQ(parse_qemu_size("0.5K").value(), 512U);
    EXPECT_EQ(parse_qemu_size("0.0009765625K").value(), 1U);
    EXPECT_EQ(parse_qemu_size("0.0009765624K").value(), 0U);
    EXPECT_EQ(parse_qemu_size("1.1M").value(), 1153433U);  // 1153433.6
    EXPECT_EQ(parse_qemu_size("0.1E").value(), 115292150460684697U);
    EXPECT_EQ(parse_qemu_size("15." + std::string(3000, '9') + "E").value(),
              (std::uint64_t{16} << 60) - 1 + 0);
}

TEST(QemuSize, WhatIsNoneIsRefused) {
    for (const char* text : {"",
                             "K",
                             "-1",
                             "+1",
                             " 1",
                             "1 ",
                             "1KK",
                             "1Q",
                             "1KiB",
                             "1.5",
                             "1.5B",
                             "1.",
                             "1.K",
                             ".5K",
                             "0x",
                             "0x1K",
                             "0x1.5",
                             "16E",
                             "18446744073709551616",
                             "99999999999999999999999K",
                             "1e3",
                             "1,5K"})
        EXPECT_FALSE(parse_qemu_size(text)) << text;
    EXPECT_FALSE(parse_qemu_number("1K"));
    EXPECT_FALSE(parse_qemu_number(""));
    EXPECT_FALSE(parse_qemu_number("-0"));
    EXPECT_EQ(parse_qemu_number("0x10").value(), 16U);
}

TEST(QemuSize, WhatIsPrintedIsReadAgain) {
    EXPECT_EQ(format_qemu_size(0), "0");
    EXPECT_EQ(format_qemu_size(1023), "1023");
    EXPECT_EQ(format_qemu_size(4096), "4K");
    EXPECT_EQ(format_qemu_size(std::uint64_t{15} << 60), "15E");
    std::mt19937_64 random{1};
    for (int i = 0; i < 10000; ++i) {
        const std::uint64_t size = (random() >> random() % 64) << random() % 64;
        EXPECT_EQ(parse_qemu_size(format_qemu_size(size)).value(), size);
    }
}

}  // namespace
}  // namespace guestmem
