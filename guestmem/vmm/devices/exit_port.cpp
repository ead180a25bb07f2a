// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/exit_port.hpp"

#include <algorithm>
#include <utility>

namespace guestmem::vmm {

ExitPort::ExitPort(std::function<void(std::uint32_t)> leave) : leave_(std::move(leave)) {}

void ExitPort::read(std::uint64_t /*offset*/, std::span<std::byte> /*data*/) {}

void ExitPort::write(std::uint64_t offset, std::span<const std::byte> data) {
    if (offset != 0 || data.empty() || !leave_) return;
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < std::min<std::size_t>(data.size(), 4); ++i)
        value |= std::to_integer<std::uint32_t>(data[i]) << (8 * i);
    leave_(value);
}

}  // namespace guestmem::vmm
