// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "guestmem/device/device_clock.hpp"
#include "guestmem/device/interrupt.hpp"
#include "guestmem/vmm/devices/byte_window.hpp"
#include "guestmem/vmm/devices/rtc_time.hpp"

/// The real-time clock of a PC with its 128 bytes of CMOS memory: an MC146818 at 0x70 and 0x71.
///
/// Concepts: Motorola's data sheet MC146818 (ADI-856); register numbers are the bytes of its memory map. The time of
/// day is a function of the machine's, nanoseconds since 1970 in whatever zone the guest shall see, plus what the guest
/// set it forward or back. The periodic interrupt comes from the DeviceClock, which stands still while the machine is
/// paused; the time of day does not.
/// Contract: time in BCD or binary, 12 or 24 hours, as register B says, the century at 0x32. While SET is on or the
/// divider is held in reset the time stands, and its bytes are what the guest wrote, whatever they are; afterwards they
/// are the time, bytes that make no date counted as so many seconds, minutes, days and months. UIP is up for the last
/// 244 us of each second. Register C tells what happened since it was read, enabled or not, and reading it clears it
/// and takes the line down. Events that were not looked at are one event, so that a slow guest gets no burst. Bit 7 of
/// port 0x70 (NMI) has no effect, and port 0x70 reads as ones.
/// Threads: any. The line is set with the mutex held: it must not call back; nor may the time function.
/// Lifetime: clock and line outlive the chip.
/// Known holes: daylight saving (DSE) and the square wave (SQWE) are kept and have no effect.

namespace guestmem::vmm {

class Rtc {
public:
    static constexpr std::size_t memory_bytes = 128;
    static constexpr std::uint8_t century_register = 0x32;  ///< for the FADT's field CENTURY

    /// Nanoseconds since 1970-01-01 00:00, also negative ones.
    using WallClock = std::function<std::int64_t()>;

    Rtc(DeviceClock& clock, WallClock wall_clock, InterruptLine& line);
    Rtc(const Rtc&) = delete;
    Rtc& operator=(const Rtc&) = delete;

    /// What firmware leaves in the memory above register D; other indices change nothing.
    void store(std::uint8_t index, std::uint8_t value);

    [[nodiscard]] IoDevice& ports() { return ports_; }  ///< 2 ports: 0x70

private:
    std::uint8_t read_port(std::uint64_t offset);
    void write_port(std::uint64_t offset, std::uint8_t value);
    std::uint8_t read_register(std::uint8_t index);
    void write_register(std::uint8_t index, std::uint8_t value);
    void write_time(std::uint8_t index, std::uint8_t value);
    void change_control(std::uint8_t& control, std::uint8_t value);

    [[nodiscard]] bool is_running() const;
    [[nodiscard]] std::int64_t time_ns() const;
    [[nodiscard]] RtcFormat format() const;
    [[nodiscard]] RtcAlarm alarm_time() const;
    /// Writes the present time into its registers, and reads it back from there.
    void store_time();
    void adopt_time(std::int64_t fraction_ns);
    /// The period of the periodic interrupt in ticks of 32,768 Hz; 0: none.
    [[nodiscard]] std::uint64_t periodic_ticks() const;
    /// Notes what happened since the last call.
    void advance();
    void follow();

    DeviceClock& clock_;
    WallClock wall_clock_;
    InterruptLine& line_;
    std::mutex mutex_;
    std::array<std::uint8_t, memory_bytes> memory_{};
    std::uint8_t index_ = 0;
    std::int64_t ahead_ns_ = 0;     ///< of the guest's time before the wall clock
    std::int64_t last_second_ = 0;  ///< up to where updates were noted
    std::uint64_t last_tick_ = 0;   ///< up to where periods were noted
    ByteWindow ports_;
    std::unique_ptr<DeviceAlarm> alarm_;  ///< last: destroyed first, and waits for its handler
};

}  // namespace guestmem::vmm
