// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/debug_port.hpp"

#include <utility>

namespace guestmem::vmm {

DebugPort::DebugPort(std::function<void(std::byte)> send)
    : send_(std::move(send)),
      port_(
          1, [](std::uint64_t /*offset*/) { return signature; },
          [this](std::uint64_t /*offset*/, std::uint8_t value) {
              if (send_) send_(std::byte{value});
          }) {}

}  // namespace guestmem::vmm
