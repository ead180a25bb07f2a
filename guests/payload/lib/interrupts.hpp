// SPDX-License-Identifier: Apache-2.0
#pragma once

// Interrupts: the local APIC, an I/O APIC at any address, a counter per vector, and waiting in HLT.
//
// Concepts: a *pin* is an input of the I/O APIC, a *vector* is what the processor gets. Each interrupt adds one to
//   its vector's counter; a handler, where one is set, runs before the local APIC is told that the interrupt is
//   over: a level line is lowered there, or the interrupt comes again.
// Contract: start_interrupts() masks both PICs and LINT0, which deliver the same lines a second time otherwise, and
//   starts a tick of 10 ms by the local APIC's timer, which counts nanoseconds in KVM and in QEMU. Interrupts stay
//   off except inside of wait_until(); wait in it instead of in a loop: a hypervisor that emulates ring 0 delivers
//   late to a processor that spins.
// Limits: the vectors from 0x30 up are free; wait_until() is as exact as the tick.
// Example: route(4, serial_vector, Trigger::edge); wait_until([] { return count_interrupts(serial_vector); }, 1000);

#include <cstdint>

#include "guests/payload/lib/cpu.hpp"

namespace guestmem::payload {

inline constexpr std::uint8_t tick_vector = 0x2f;
inline constexpr std::uint8_t first_free_vector = 0x30;
inline constexpr unsigned tick_ms = 10;
inline constexpr std::uint64_t default_io_apic = 0xfec00000;

using InterruptHandler = void (*)();

// The I/O APIC's address is the option `ioapic`.
void start_interrupts();
std::uint64_t count_interrupts(std::uint8_t vector);
void set_handler(std::uint8_t vector, InterruptHandler handler);

enum class Trigger { edge, level };
void route(unsigned pin, std::uint8_t vector, Trigger trigger);
void mask_pin(unsigned pin);

std::uint64_t io_apic_address();
std::uint32_t read_io_apic(unsigned index);
void write_io_apic(unsigned index, std::uint32_t value);
inline constexpr unsigned io_apic_id = 0;
inline constexpr unsigned io_apic_version = 1;
// The low half of a pin's entry; the high half is the next one.
constexpr unsigned io_apic_entry(unsigned pin) { return 0x10 + 2 * pin; }
inline constexpr std::uint32_t entry_is_level = 1 << 15;
inline constexpr std::uint32_t entry_has_remote_irr = 1 << 14;
inline constexpr std::uint32_t entry_is_masked = 1 << 16;

// How many time stamps a millisecond has, measured by the local APIC's timer; takes 20 ms the first time.
std::uint64_t time_stamps_per_ms();

// Halts until the condition holds, which is asked with interrupts off; false when the time is over.
template <typename Condition>
bool wait_until(Condition is_so, std::uint64_t timeout_ms) {
    const std::uint64_t last_tick = count_interrupts(tick_vector) + timeout_ms / tick_ms + 1;
    while (!is_so()) {
        if (count_interrupts(tick_vector) > last_tick) return false;
        halt_until_interrupt();
    }
    return true;
}

inline void wait_ms(std::uint64_t duration_ms) {
    wait_until([] { return false; }, duration_ms);
}

}  // namespace guestmem::payload
