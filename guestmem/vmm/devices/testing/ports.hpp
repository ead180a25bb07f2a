// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "guestmem/device/io_device.hpp"

/// Reads and writes registers as a driver's inb, outb, readl and writel do, for tests of devices.
///
/// Contract: a read is over bytes of ones, as a bus gives them.
/// Threads: any, as the device.

namespace guestmem::vmm::testing {

template <typename Value>
Value read_register(IoDevice& device, std::uint64_t offset) {
    std::array<std::byte, sizeof(Value)> bytes{};
    bytes.fill(std::byte{0xff});
    device.read(offset, bytes);
    return std::bit_cast<Value>(bytes);
}

template <typename Value>
void write_register(IoDevice& device, std::uint64_t offset, Value value) {
    const auto bytes = std::bit_cast<std::array<std::byte, sizeof(Value)>>(value);
    device.write(offset, bytes);
}

inline std::uint8_t in8(IoDevice& device, std::uint64_t offset = 0) {
    return read_register<std::uint8_t>(device, offset);
}
inline void out8(IoDevice& device, std::uint64_t offset, unsigned value) {
    write_register(device, offset, static_cast<std::uint8_t>(value));
}

/// Every offset near the window and far from it, in every width, read and written: whether that ends is the test.
inline void touch_all(IoDevice& device, std::uint64_t count, std::uint8_t value) {
    std::array<std::byte, 8> bytes{};
    for (std::uint64_t step = 0; step < count + 8; ++step) {
        for (const std::uint64_t offset : {step, ~step}) {
            for (const std::size_t width : {1U, 2U, 4U, 8U}) {
                bytes.fill(std::byte{0xff});
                device.read(offset, std::span{bytes}.first(width));
                bytes.fill(std::byte{value});
                device.write(offset, std::span{bytes}.first(width));
            }
        }
    }
}

}  // namespace guestmem::vmm::testing
