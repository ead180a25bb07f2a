// SPDX-License-Identifier: Apache-2.0
#pragma once

// PCI functions of bus 0, through configuration mechanism 1 (ports 0xcf8 and 0xcfc).
//
// Concepts: a BAR is a base address register with the memory or ports behind it.
// Contract: a memory BAR that nobody has placed is placed by bar(): upwards from the option `pciwindow`
//   (0xe0000000), aligned to its size. Message interrupts go to processor 0, fixed, edge.
// Limits: bus 0 only; no extended configuration space.
// Example: PciFunction device; if (find_pci(0x1af4, 0x1110, 0, device)) { device.enable(); device.bar(0).address; }

#include <cstdint>

namespace guestmem::payload {

struct PciBar {
    std::uint64_t address;  // 0: there is none
    std::uint64_t size_bytes;
    bool is_port;
    bool is_64_bit;
    bool is_prefetchable;
};

class PciFunction {
public:
    PciFunction() = default;
    PciFunction(unsigned device, unsigned function) : base_(device << 11 | function << 8) {}

    std::uint8_t read8(unsigned offset) const;
    std::uint16_t read16(unsigned offset) const;
    std::uint32_t read32(unsigned offset) const;
    void write8(unsigned offset, std::uint8_t value) const;
    void write16(unsigned offset, std::uint16_t value) const;
    void write32(unsigned offset, std::uint32_t value) const;

    bool exists() const { return read16(0) != 0xffff; }
    // Memory and bus master on.
    void enable() const;
    PciBar bar(unsigned index) const;
    // The offset of a capability, 0 where there is none.
    unsigned capability(std::uint8_t id) const;

    // Vector i of the device is sent as `first_vector` + i; how many it has, 0 when it cannot.
    unsigned use_msix(std::uint8_t first_vector, unsigned max_vectors) const;
    bool use_msi(std::uint8_t vector) const;

private:
    void select(unsigned offset) const;
    std::uint32_t size_register(unsigned offset, std::uint64_t& value) const;

    std::uint32_t base_ = 0;
};

// The `index`-th function with this identity.
bool find_pci(std::uint16_t vendor, std::uint16_t device, unsigned index, PciFunction& found);

namespace pci {
inline constexpr unsigned command = 0x04;
inline constexpr unsigned revision_and_class = 0x08;
inline constexpr unsigned header_type = 0x0e;
inline constexpr unsigned first_bar = 0x10;
inline constexpr unsigned interrupt_line = 0x3c;
inline constexpr unsigned interrupt_pin = 0x3d;
inline constexpr std::uint8_t msi = 0x05;
inline constexpr std::uint8_t msix = 0x11;
}  // namespace pci

}  // namespace guestmem::payload
