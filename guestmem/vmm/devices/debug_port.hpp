// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "guestmem/vmm/devices/byte_window.hpp"

/// The port 0xe9 of Bochs and QEMU: each byte that is written leaves, and reading gives 0xe9, by which a guest finds
/// it.
///
/// Contract: the function is called from the thread of the access and must not wait.
/// Threads: any; bytes of several processors leave in any order.

namespace guestmem::vmm {

class DebugPort {
public:
    static constexpr std::uint8_t signature = 0xe9;

    explicit DebugPort(std::function<void(std::byte)> send);
    DebugPort(const DebugPort&) = delete;
    DebugPort& operator=(const DebugPort&) = delete;

    [[nodiscard]] IoDevice& port() { return port_; }

private:
    std::function<void(std::byte)> send_;
    ByteWindow port_;
};

}  // namespace guestmem::vmm
