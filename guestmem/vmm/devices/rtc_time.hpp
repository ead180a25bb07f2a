// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>

/// How an MC146818 writes a moment into its ten bytes, and when an alarm of three bytes comes.
///
/// Concepts: MC146818 data sheet, section "Time, calendar, and alarm locations", table 3. A moment is seconds since
/// 1970.
/// Contract: any bytes are some moment: fields beyond their range carry over, nibbles above 9 count as their weight.
/// What was written from a moment between the years 0 and 9999 reads back as it. Alarm bytes from 0xc0 up match
/// everything.
/// Threads: any; plain values.
/// Cost: next_alarm() looks at 144 moments at most.

namespace guestmem::vmm {

struct RtcFormat {
    bool is_binary = false;
    bool is_24_hours = true;
};

/// The bytes of a date as the guest sees them.
struct RtcBytes {
    std::uint8_t second = 0;
    std::uint8_t minute = 0;
    std::uint8_t hour = 0;
    std::uint8_t day_of_week = 1;  ///< 1 is Sunday
    std::uint8_t day = 1;
    std::uint8_t month = 1;
    std::uint8_t year = 0;
    std::uint8_t century = 0;
    friend bool operator==(const RtcBytes&, const RtcBytes&) = default;
};

/// The three alarm bytes as numbers; nothing: every one.
struct RtcAlarm {
    std::optional<std::uint8_t> second;
    std::optional<std::uint8_t> minute;
    std::optional<std::uint8_t> hour;
};

[[nodiscard]] RtcBytes to_rtc_bytes(std::int64_t moment, RtcFormat format);
[[nodiscard]] std::int64_t to_moment(const RtcBytes& bytes, RtcFormat format);

/// Which alarm these bytes ask for.
[[nodiscard]] RtcAlarm to_rtc_alarm(std::uint8_t second, std::uint8_t minute, std::uint8_t hour,
                                    RtcFormat format);
/// The first moment after this one that it matches; nothing: it matches none.
[[nodiscard]] std::optional<std::int64_t> next_alarm(const RtcAlarm& alarm, std::int64_t moment);

}  // namespace guestmem::vmm
