// SPDX-License-Identifier: Apache-2.0
#include "guests/payload/lib/ivshmem_device.hpp"

namespace guestmem::payload {

namespace {
constexpr unsigned max_vectors = 8;
}

bool open_ivshmem(unsigned index, std::uint8_t first_vector, IvshmemDevice& device) {
    if (!find_pci(0x1af4, 0x1110, index, device.function)) return false;
    const PciBar registers = device.function.bar(0);
    const PciBar memory = device.function.bar(2);
    device.registers = registers.address;
    device.memory = memory.address;
    device.memory_bytes = memory.size_bytes;
    device.function.enable();
    device.vectors = device.function.use_msix(first_vector, max_vectors);
    return registers.address && memory.address;
}

}  // namespace guestmem::payload
