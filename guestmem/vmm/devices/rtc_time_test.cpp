// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/rtc_time.hpp"

#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <random>

namespace guestmem::vmm {
namespace {

constexpr RtcFormat bcd_24{.is_binary = false, .is_24_hours = true};
constexpr std::array<RtcFormat, 4> formats{RtcFormat{false, true}, RtcFormat{false, false},
                                           RtcFormat{true, true}, RtcFormat{true, false}};
constexpr std::int64_t moment_2024 = 1'709'211'599;  // 2024-02-29 12:59:59, a Thursday

TEST(RtcTime, WritesAMomentInEachForm) {
    EXPECT_EQ(to_rtc_bytes(moment_2024, bcd_24), (RtcBytes{.second = 0x59,
                                                           .minute = 0x59,
                                                           .hour = 0x12,
                                                           .day_of_week = 5,
                                                           .day = 0x29,
                                                           .month = 0x02,
                                                           .year = 0x24,
                                                           .century = 0x20}));
    const RtcBytes binary = to_rtc_bytes(moment_2024, {.is_binary = true, .is_24_hours = false});
    EXPECT_EQ(binary.second, 59);
    EXPECT_EQ(binary.hour, 0x80 | 12) << "noon is 12 PM";
    EXPECT_EQ(binary.century, 20);
    EXPECT_EQ(to_rtc_bytes(moment_2024 - 12 * 3600, {.is_binary = false, .is_24_hours = false}).hour, 0x12)
        << "midnight is 12 AM";
}

TEST(RtcTime, ReadsBackWhatItWrote) {
    std::mt19937_64 random{7};
    std::uniform_int_distribution<std::int64_t> moments{-62'167'219'200, 253'402'300'799};
    for (int i = 0; i < 20'000; ++i) {
        const std::int64_t moment = moments(random);
        for (const RtcFormat format : formats)
            ASSERT_EQ(to_moment(to_rtc_bytes(moment, format), format), moment) << moment;
    }
}

TEST(RtcTime, AnyMomentAndAnyBytesAreTaken) {
    for (const std::int64_t moment :
         {std::numeric_limits<std::int64_t>::min(), std::int64_t{-62'167'219'201}})
        EXPECT_EQ(to_rtc_bytes(moment, bcd_24).century, 0);
    EXPECT_EQ(to_rtc_bytes(std::numeric_limits<std::int64_t>::max(), bcd_24).year, 0x99);
    const RtcBytes ones{255, 255, 255, 255, 255, 255, 255, 255};
    for (const RtcFormat format : formats) EXPECT_GT(to_moment(ones, format), moment_2024);
    RtcBytes overflow = to_rtc_bytes(moment_2024, bcd_24);
    overflow.month = 0x13;
    EXPECT_EQ(to_rtc_bytes(to_moment(overflow, bcd_24), bcd_24).year, 0x25);
    overflow.month = 0x00;
    EXPECT_EQ(to_rtc_bytes(to_moment(overflow, bcd_24), bcd_24).month, 0x12);
}

TEST(RtcTime, AnAlarmComesAtTheNextMomentThatItNames) {
    EXPECT_EQ(next_alarm(to_rtc_alarm(0x00, 0x00, 0x13, bcd_24), moment_2024), moment_2024 + 1);
    EXPECT_EQ(next_alarm(to_rtc_alarm(0x59, 0x59, 0x12, bcd_24), moment_2024), moment_2024 + 86'400);
    EXPECT_EQ(next_alarm(to_rtc_alarm(0xc0, 0xff, 0xff, bcd_24), moment_2024), moment_2024 + 1);
    EXPECT_EQ(next_alarm(to_rtc_alarm(0x58, 0xff, 0xff, bcd_24), moment_2024), moment_2024 + 59);
    EXPECT_EQ(
        next_alarm(to_rtc_alarm(0x00, 0x00, 0x81, {.is_binary = false, .is_24_hours = false}), moment_2024),
        moment_2024 + 1);
    EXPECT_FALSE(next_alarm(to_rtc_alarm(0x61, 0x00, 0x00, bcd_24), moment_2024));
}

TEST(RtcTime, AnAlarmAgreesWithLookingAtEverySecond) {
    std::mt19937 random{11};
    for (int i = 0; i < 60; ++i) {
        const auto byte = [&random](unsigned limit) {
            return static_cast<std::uint8_t>(random() % 3 == 0 ? 0xc0 : random() % limit);
        };
        const RtcAlarm alarm =
            to_rtc_alarm(byte(60), byte(60), byte(24), {.is_binary = true, .is_24_hours = true});
        const auto start = static_cast<std::int64_t>(random() % 200'000) - 100'000;
        std::int64_t moment = start + 1;
        const auto is_match = [&alarm](std::int64_t at) {
            const std::int64_t second = ((at % 86'400) + 86'400) % 86'400;
            return alarm.hour.value_or(second / 3600) == second / 3600 &&
                   alarm.minute.value_or(second / 60 % 60) == second / 60 % 60 &&
                   alarm.second.value_or(second % 60) == second % 60;
        };
        while (!is_match(moment)) ++moment;
        ASSERT_EQ(next_alarm(alarm, start), moment);
    }
}

}  // namespace
}  // namespace guestmem::vmm
