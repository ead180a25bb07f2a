// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "guestmem/vmm/processors.hpp"

/// What a machine is made of and has done, at one moment; for whoever looks at it from outside.
///
/// Concepts: a device is its windows: ports, or addresses that are no memory. A window of a BAR comes and goes with
/// what the guest does. A connection is a place in a share that a device of the machine holds.
/// Contract: a copy; nothing in it changes or leads back into the machine.
/// Threads: any; plain values.

namespace guestmem::vmm {

struct DeviceWindow {
    std::string name;  ///< "mc146818"
    bool is_port = false;
    std::uint64_t first = 0;
    std::uint64_t count = 0;
};

struct ShareConnection {
    std::string device;  ///< "shmem", "ivshmem", or "create": a region of a `create` line
    std::string share;
    std::uint64_t size_bytes = 0;
    std::optional<std::uint32_t> slot = std::nullopt;  ///< where the device knows it
};

struct MachineFacts {
    std::vector<ExitCounts> exits;  ///< one entry for each processor
    std::vector<DeviceWindow> devices;
    std::vector<ShareConnection> connections;
    std::size_t count_serial_ports = 0;
};

}  // namespace guestmem::vmm
