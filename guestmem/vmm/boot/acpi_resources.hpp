// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "guestmem/mem/range.hpp"

/// A list of ACPI resource descriptors: what a _CRS says about ports, addresses, bus numbers and interrupts.
///
/// Concepts: each call appends one descriptor (ACPI 6.5, 6.4); take() ends the list and gives its bytes, for
/// Aml::buffer(). Fixed resources are a device's own; windows are what a bridge hands on to devices behind it.
/// Contract: interrupt() makes the small descriptor for an ISA interrupt (0 to 15) and the extended one for others;
/// both are edge, active high, not shared, as ISA devices have them.
/// Threads: one at a time.

namespace guestmem::vmm {

class AcpiResources {
public:
    AcpiResources& ports(std::uint16_t first, std::uint8_t count);
    AcpiResources& interrupt(std::uint32_t gsi);
    /// 64-bit descriptor; for any fixed range of memory addresses.
    AcpiResources& fixed_memory(const GuestRange& range);

    AcpiResources& bus_window(std::uint8_t first, std::uint8_t last);
    AcpiResources& port_window(std::uint16_t first, std::uint16_t last);
    /// Not cached; the range ends below 4 GiB.
    AcpiResources& memory_window_32(const GuestRange& range);
    AcpiResources& memory_window_64(const GuestRange& range);

    [[nodiscard]] std::vector<std::byte> take();

private:
    struct AddressSpace {
        std::uint8_t tag = 0;
        unsigned field_bytes = 0;
        std::uint8_t kind = 0;
        std::uint8_t general_flags = 0;
        std::uint8_t kind_flags = 0;
        std::uint64_t first = 0;
        std::uint64_t last = 0;
    };
    void address_space(const AddressSpace& space);
    void little(std::uint64_t value, unsigned count_bytes);

    std::vector<std::byte> bytes_;
};

}  // namespace guestmem::vmm
