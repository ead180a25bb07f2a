// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "guestmem/device/io_device.hpp"

/// A port, 0xf4 by custom, that a test's guest writes its result to: QEMU's isa-debug-exit without its arithmetic.
///
/// Contract: a write at offset 0 calls the function with the value, its bytes beyond the fourth cut off; what that
/// ends, and with which exit code, is the machine's to say. It is called from the thread of the access, perhaps several
/// times, and must not wait. Reads give ones. Threads: any.

namespace guestmem::vmm {

class ExitPort final : public IoDevice {
public:
    static constexpr std::uint64_t port_count = 4;

    explicit ExitPort(std::function<void(std::uint32_t)> leave);

    void read(std::uint64_t offset, std::span<std::byte> data) override;
    void write(std::uint64_t offset, std::span<const std::byte> data) override;

private:
    std::function<void(std::uint32_t)> leave_;
};

}  // namespace guestmem::vmm
