// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

/// What a guest reads and writes that is not memory: registers behind a window of ports or of addresses.
///
/// Concepts: a device has one window for each set of registers; an access comes with its offset in the window and the
/// bytes as the guest's processor sends them, least significant first: 1, 2, 4 or 8 of them (2 or 4 parts of a wider
/// one come one after another). A Bus (bus.hpp) finds the window; an access that would leave it never gets here.
/// Contract: offset and width are the guest's choice. A device answers every one: what is no register reads as ones
/// (`data` is filled with them before the call) and takes writes without effect. A device never waits for a guest.
/// Threads: every processor of the guest, at the same time; a device has a mutex of its own.
/// Lifetime: an access that has begun may end after the device was removed from its bus.

namespace guestmem {

class IoDevice {
public:
    IoDevice() = default;
    IoDevice(const IoDevice&) = delete;
    IoDevice& operator=(const IoDevice&) = delete;
    virtual ~IoDevice() = default;

    virtual void read(std::uint64_t offset, std::span<std::byte> data) = 0;
    virtual void write(std::uint64_t offset, std::span<const std::byte> data) = 0;
};

}  // namespace guestmem
