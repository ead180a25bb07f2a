// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <shared_mutex>
#include <span>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/device/io_device.hpp"

/// Which device answers at which port or address of a machine.
///
/// Concepts: a window is a run of numbers that one device answers; windows do not overlap. A machine has two buses, one
/// for ports and one for what is no memory.
/// Contract: add() and move() are refused when another window is there, and the error names it; a bus is never half
/// changed. read() and write() call the device without holding anything of the bus, so that a device may move windows,
/// its own among them, while it answers. Where no window holds the whole access, a read gives ones and a write is lost;
/// both say so by false. A window without a device is reserved: nothing else gets there, and accesses find nobody. That
/// is what memory of a device has, and what a machine puts over its RAM.
/// Threads: any.
/// Cost: an access takes a shared lock and a binary search.
/// Example:
///     GM_TRY(ports.add({.name = "COM1", .first = 0x3f8, .count = 8, .device = serial}));

namespace guestmem {

struct BusWindow {
    std::string name;  ///< for errors and for lists: "COM1"
    std::uint64_t first = 0;
    std::uint64_t count = 0;
    std::shared_ptr<IoDevice> device = {};  ///< nobody: reserved
};

class Bus {
public:
    /// `last` is the greatest number: 0xffff for ports.
    explicit Bus(std::string name, std::uint64_t last) : name_(std::move(name)), last_(last) {}

    [[nodiscard]] Result<void> add(BusWindow window);
    /// The window that begins at `from` begins at `to`.
    [[nodiscard]] Result<void> move(std::uint64_t from, std::uint64_t to);
    /// False when none begins there.
    bool remove(std::uint64_t first);

    bool read(std::uint64_t address, std::span<std::byte> data) const;
    bool write(std::uint64_t address, std::span<const std::byte> data) const;

    /// In ascending order.
    [[nodiscard]] std::vector<BusWindow> windows() const;

private:
    struct Found {
        std::shared_ptr<IoDevice> device;
        std::uint64_t offset = 0;
    };
    [[nodiscard]] Found find(std::uint64_t address, std::size_t size_bytes) const;
    [[nodiscard]] Result<void> check_free(const BusWindow& window, const BusWindow* but) const;

    std::string name_;
    std::uint64_t last_;
    mutable std::shared_mutex mutex_;
    std::vector<BusWindow> windows_;  ///< sorted by first
};

}  // namespace guestmem
