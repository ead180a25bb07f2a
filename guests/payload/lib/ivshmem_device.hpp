// SPDX-License-Identifier: Apache-2.0
#pragma once

// The ivshmem device of bus 0: registers, shared memory, and its MSI-X vectors switched on.
//
// Contract: BAR0 offset 8 is the own position, a 32-bit write to offset 12 rings: peer in the upper half, vector in
//   the lower one; who is not there hears nothing. Vector i of the device is `first_vector` + i of the processor.
// Limits: the first 8 vectors are used. A plain device has none, and its position says nothing.

#include <cstdint>

#include "guests/payload/lib/cpu.hpp"
#include "guests/payload/lib/pci.hpp"

namespace guestmem::payload {

struct IvshmemDevice {
    PciFunction function;
    std::uint64_t registers;
    std::uint64_t memory;
    std::uint64_t memory_bytes;
    unsigned vectors;

    std::uint16_t position() const {
        return static_cast<std::uint16_t>(read_device<std::uint32_t>(registers + 8));
    }
    void ring(std::uint16_t peer, std::uint16_t vector) const {
        write_device<std::uint32_t>(registers + 12, std::uint32_t{peer} << 16 | vector);
    }
};

// The `index`-th one; false where there is none.
bool open_ivshmem(unsigned index, std::uint8_t first_vector, IvshmemDevice& device);

}  // namespace guestmem::payload
