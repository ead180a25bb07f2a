// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/rtc_time.hpp"

#include <algorithm>
#include <chrono>

namespace guestmem::vmm {
namespace {

constexpr std::int64_t minute_seconds = 60;
constexpr std::int64_t hour_seconds = 60 * minute_seconds;
constexpr std::int64_t day_seconds = 24 * hour_seconds;
constexpr std::uint8_t afternoon_bit = 0x80;
constexpr std::uint8_t any_bits = 0xc0;

// The bytes have two digits of century and two of year.
constexpr std::int64_t first_moment = -62'167'219'200;  // 0000-01-01 00:00:00
constexpr std::int64_t last_moment = 253'402'300'799;   // 9999-12-31 23:59:59

std::uint8_t to_byte(unsigned value, RtcFormat format) {
    return static_cast<std::uint8_t>(format.is_binary ? value : value / 10 << 4U | value % 10);
}

unsigned from_byte(std::uint8_t byte, RtcFormat format) {
    return format.is_binary ? byte : (byte >> 4U) * 10U + (byte & 15U);
}

std::uint8_t to_hour_byte(unsigned hour, RtcFormat format) {
    if (format.is_24_hours) return to_byte(hour, format);
    const unsigned shown = hour % 12 == 0 ? 12 : hour % 12;
    return to_byte(shown, format) | (hour >= 12 ? afternoon_bit : std::uint8_t{0});
}

unsigned from_hour_byte(std::uint8_t byte, RtcFormat format) {
    if (format.is_24_hours) return from_byte(byte, format);
    const unsigned shown = from_byte(byte & 0x7fU, format);
    return shown % 12 + ((byte & afternoon_bit) != 0 ? 12U : 0U);
}

std::int64_t floor_to(std::int64_t value, std::int64_t unit) {
    const std::int64_t rest = value % unit;
    return value - (rest < 0 ? rest + unit : rest);
}

bool matches(const std::optional<std::uint8_t>& wanted, std::int64_t value) {
    return !wanted || *wanted == value;
}

}  // namespace

RtcBytes to_rtc_bytes(std::int64_t moment, RtcFormat format) {
    moment = std::clamp(moment, first_moment, last_moment);
    const std::int64_t midnight = floor_to(moment, day_seconds);
    const auto second_of_day = static_cast<unsigned>(moment - midnight);
    const std::chrono::sys_days date{std::chrono::days{midnight / day_seconds}};
    const std::chrono::year_month_day calendar{date};
    const auto year = static_cast<unsigned>(static_cast<int>(calendar.year()));
    return {.second = to_byte(second_of_day % 60, format),
            .minute = to_byte(second_of_day / 60 % 60, format),
            .hour = to_hour_byte(second_of_day / 3600, format),
            .day_of_week = to_byte(std::chrono::weekday{date}.c_encoding() + 1, format),
            .day = to_byte(static_cast<unsigned>(calendar.day()), format),
            .month = to_byte(static_cast<unsigned>(calendar.month()), format),
            .year = to_byte(year % 100, format),
            .century = to_byte(year / 100, format)};
}

std::int64_t to_moment(const RtcBytes& bytes, RtcFormat format) {
    // A byte is 255 at most, so nothing here can overflow.
    const unsigned months = from_byte(bytes.month, format) + 11;  // month 0 is the December before
    const auto year = static_cast<int>(from_byte(bytes.century, format) * 100 +
                                       from_byte(bytes.year, format) + months / 12) -
                      1;
    const std::chrono::sys_days first_of_month{std::chrono::year{year} / static_cast<int>(months % 12 + 1) /
                                               1};
    const std::int64_t day =
        first_of_month.time_since_epoch().count() + std::int64_t{from_byte(bytes.day, format)} - 1;
    return day * day_seconds + from_hour_byte(bytes.hour, format) * hour_seconds +
           from_byte(bytes.minute, format) * minute_seconds + from_byte(bytes.second, format);
}

RtcAlarm to_rtc_alarm(std::uint8_t second, std::uint8_t minute, std::uint8_t hour, RtcFormat format) {
    RtcAlarm alarm;
    // Any number above the range stays out of it in 8 bits: 255 at most.
    if (second < any_bits) alarm.second = static_cast<std::uint8_t>(from_byte(second, format));
    if (minute < any_bits) alarm.minute = static_cast<std::uint8_t>(from_byte(minute, format));
    if (hour < any_bits) alarm.hour = static_cast<std::uint8_t>(from_hour_byte(hour, format));
    return alarm;
}

std::optional<std::int64_t> next_alarm(const RtcAlarm& alarm, std::int64_t moment) {
    std::int64_t candidate = moment + 1;
    // A day and the rest of an hour and of a minute bring every time of day.
    const std::int64_t last = candidate + day_seconds;
    while (candidate <= last) {
        const std::int64_t second = candidate - floor_to(candidate, day_seconds);
        if (!matches(alarm.hour, second / hour_seconds)) {
            candidate = floor_to(candidate, hour_seconds) + hour_seconds;
        } else if (!matches(alarm.minute, second / minute_seconds % 60)) {
            candidate = floor_to(candidate, minute_seconds) + minute_seconds;
        } else if (!matches(alarm.second, second % 60)) {
            ++candidate;
        } else {
            return candidate;
        }
    }
    return std::nullopt;
}

}  // namespace guestmem::vmm
