// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <utility>

#include "guestmem/device/io_device.hpp"

/// One window of a chip whose registers are bytes, and how a chip with several windows is put on a bus.
///
/// Concepts: the chips of the ISA bus have 8 data lines, so an access of 2 or 4 bytes is that many accesses one after
/// another, with ascending offsets. Bytes beyond the window's last register stay ones and take no writes.
/// Contract: the functions are the chip's and take its mutex themselves, once for each byte.
/// Lifetime: a window is a member of its chip; window_of() makes a bus keep the chip while it has the window.
/// Threads: any, as the chip's functions.
/// Example:
///     auto pic = std::make_shared<Pic>(intr);
///     GM_TRY(ports.add({.name = "PIC", .first = 0x20, .count = 2, .device = window_of(pic, pic->master_ports())}));

namespace guestmem::vmm {

class ByteWindow final : public IoDevice {
public:
    using Read = std::function<std::uint8_t(std::uint64_t offset)>;
    using Write = std::function<void(std::uint64_t offset, std::uint8_t value)>;

    ByteWindow(std::uint64_t count, Read read, Write write)
        : count_(count), read_(std::move(read)), write_(std::move(write)) {}

    void read(std::uint64_t offset, std::span<std::byte> data) override {
        for (std::byte& byte : data) {
            if (offset >= count_) return;
            byte = std::byte{read_(offset++)};
        }
    }
    void write(std::uint64_t offset, std::span<const std::byte> data) override {
        for (const std::byte byte : data) {
            if (offset >= count_) return;
            write_(offset++, std::to_integer<std::uint8_t>(byte));
        }
    }

private:
    std::uint64_t count_;
    Read read_;
    Write write_;
};

/// A window as a bus wants it: the chip lives as long as somebody has it.
template <typename Chip>
[[nodiscard]] std::shared_ptr<IoDevice> window_of(const std::shared_ptr<Chip>& chip, IoDevice& window) {
    return {chip, &window};
}

}  // namespace guestmem::vmm
