// SPDX-License-Identifier: Apache-2.0
#pragma once

// The instructions that C++ has no words for: ports, device memory, interrupts on and off, time stamps.
//
// Contract: device memory is read and written by one move of exactly the width asked for: devices tell widths
//   apart, and a hypervisor has to decode the instruction.
// Threads: there is one processor and no thread.

#include <cstdint>

namespace guestmem::payload {

inline void out8(std::uint16_t port, std::uint8_t value) {
    asm volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}
inline void out16(std::uint16_t port, std::uint16_t value) {
    asm volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}
inline void out32(std::uint16_t port, std::uint32_t value) {
    asm volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}
inline std::uint8_t in8(std::uint16_t port) {
    std::uint8_t value = 0;
    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}
inline std::uint16_t in16(std::uint16_t port) {
    std::uint16_t value = 0;
    asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}
inline std::uint32_t in32(std::uint16_t port) {
    std::uint32_t value = 0;
    asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

template <typename Value>
Value read_device(std::uint64_t address) {
    Value value = 0;
    asm volatile("mov (%1), %0" : "=r"(value) : "r"(address) : "memory");
    return value;
}
template <typename Value>
void write_device(std::uint64_t address, Value value) {
    asm volatile("mov %0, (%1)" : : "r"(value), "r"(address) : "memory");
}

inline std::uint64_t read_time_stamp() {
    std::uint32_t low = 0;
    std::uint32_t high = 0;
    asm volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (std::uint64_t{high} << 32) | low;
}

inline void relax() { asm volatile("pause" : : : "memory"); }
inline void disable_interrupts() { asm volatile("cli" : : : "memory"); }
inline void enable_interrupts() { asm volatile("sti" : : : "memory"); }
// One interrupt or more is taken, and interrupts are off again. Nothing comes between STI and HLT.
inline void halt_until_interrupt() { asm volatile("sti\n\thlt\n\tcli" : : : "memory"); }

}  // namespace guestmem::payload
