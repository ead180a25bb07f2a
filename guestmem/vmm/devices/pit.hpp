// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>

#include "guestmem/device/device_clock.hpp"
#include "guestmem/device/interrupt.hpp"
#include "guestmem/vmm/devices/byte_window.hpp"
#include "guestmem/vmm/devices/pit_counter.hpp"

/// The timer of a PC: an 8254 at 0x40 to 0x43 and the port 0x61 that belongs to its counter 2.
///
/// Concepts: counter 0 is interrupt 0, counter 1 refreshes memory that needs none, counter 2 drives a speaker that
/// nobody hears; guests time their TSC with it. The clock is 105/88 MHz, that of a PC, taken from the DeviceClock: no
/// counter runs by itself, each is brought up to the present when somebody looks (pit_counter.hpp). Only counter 0 has
/// an alarm, at the next moment that its output rises. Port 0x61 as in the PIIX3 data sheet (order number 290550),
/// section 2.5.4: bit 0 the gate of counter 2, bit 1 the speaker, bit 4 turns over with each refresh (15.085 us), bit 5
/// the output of counter 2, bits 6 and 7 errors that do not happen.
/// Contract: ticks are counted from the clock's zero, so being late does not add up. Edges that went by while nobody
/// could ring are one edge; the alarm does not ring more often than every min_ring_ns.
/// Threads: any. The line is set with the mutex held: it must not call back.
/// Lifetime: clock and line outlive the timer.
/// Cost: an access advances three counters by arithmetic, whatever the time since the last one.

namespace guestmem::vmm {

class Pit {
public:
    /// A guest that asks for more than 20,000 interrupts a second gets fewer: what is lost is as if it was late.
    static constexpr std::uint64_t min_ring_ns = 50'000;
    static constexpr std::size_t counter_count = 3;

    Pit(DeviceClock& clock, InterruptLine& line);
    Pit(const Pit&) = delete;
    Pit& operator=(const Pit&) = delete;

    [[nodiscard]] IoDevice& counter_ports() { return counter_ports_; }  ///< 4 ports: 0x40
    [[nodiscard]] IoDevice& control_port() { return control_port_; }    ///< 1 port: 0x61

    /// Whole clocks of 105/88 MHz since the clock's zero, and when the clock of that number comes.
    [[nodiscard]] static std::uint64_t to_clocks(std::uint64_t time_ns);
    [[nodiscard]] static std::uint64_t to_ns(std::uint64_t clocks);

private:
    std::uint8_t read_counter_port(std::uint64_t offset);
    void write_counter_port(std::uint64_t offset, std::uint8_t value);
    std::uint8_t read_control_port();
    void write_control_port(std::uint8_t value);
    void write_control_word(std::uint8_t value);
    /// Brings all counters up to the present.
    void advance();
    /// Tells the line what the output is, and sets the alarm for its next edge.
    void follow_output();

    DeviceClock& clock_;
    InterruptLine& line_;
    std::mutex mutex_;
    std::array<PitCounter, counter_count> counters_;
    std::uint64_t now_ns_ = 0;
    std::uint64_t clocks_ = 0;        ///< up to where the counters were brought
    std::uint64_t last_edge_ns_ = 0;  ///< when the line rose last
    std::uint8_t control_bits_ = 0;
    ByteWindow counter_ports_;
    ByteWindow control_port_;
    std::unique_ptr<DeviceAlarm> alarm_;  ///< last: destroyed first, and waits for its handler
};

}  // namespace guestmem::vmm
