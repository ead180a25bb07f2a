// SPDX-License-Identifier: Apache-2.0
#include "guests/payload/lib/pci.hpp"

#include "guests/payload/lib/cpu.hpp"
#include "guests/payload/lib/paging.hpp"
#include "guests/payload/lib/start_info.hpp"

namespace guestmem::payload {

namespace {

constexpr std::uint16_t address_port = 0xcf8;
constexpr std::uint16_t data_port = 0xcfc;
constexpr std::uint16_t command_memory = 0x2;
constexpr std::uint16_t command_bus_master = 0x4;
constexpr std::uint32_t message_address = 0xfee00000;
constexpr unsigned max_capabilities = 48;

constinit std::uint64_t next_window_address = 0;

std::uint64_t place(std::uint64_t size_bytes) {
    if (!next_window_address) next_window_address = number_option("pciwindow", 0xe0000000);
    next_window_address = (next_window_address + size_bytes - 1) & ~(size_bytes - 1);
    const std::uint64_t address = next_window_address;
    next_window_address += size_bytes;
    return address;
}

}  // namespace

void PciFunction::select(unsigned offset) const { out32(address_port, 0x80000000 | base_ | (offset & 0xfc)); }

std::uint8_t PciFunction::read8(unsigned offset) const {
    select(offset);
    return in8(static_cast<std::uint16_t>(data_port + (offset & 3)));
}
std::uint16_t PciFunction::read16(unsigned offset) const {
    select(offset);
    return in16(static_cast<std::uint16_t>(data_port + (offset & 2)));
}
std::uint32_t PciFunction::read32(unsigned offset) const {
    select(offset);
    return in32(data_port);
}
void PciFunction::write8(unsigned offset, std::uint8_t value) const {
    select(offset);
    out8(static_cast<std::uint16_t>(data_port + (offset & 3)), value);
}
void PciFunction::write16(unsigned offset, std::uint16_t value) const {
    select(offset);
    out16(static_cast<std::uint16_t>(data_port + (offset & 2)), value);
}
void PciFunction::write32(unsigned offset, std::uint32_t value) const {
    select(offset);
    out32(data_port, value);
}

void PciFunction::enable() const {
    write16(pci::command,
            static_cast<std::uint16_t>(read16(pci::command) | command_memory | command_bus_master));
}

PciBar PciFunction::bar(unsigned index) const {
    const unsigned offset = pci::first_bar + 4 * index;
    const std::uint16_t command = read16(pci::command);
    // A register that is being sized decodes nothing.
    write16(pci::command, static_cast<std::uint16_t>(command & ~command_memory & ~1));
    std::uint64_t address = 0;
    const std::uint32_t mask = size_register(offset, address);
    PciBar bar{address, 0, (mask & 1) != 0, (mask & 7) == 4, (mask & 9) == 8};
    if (bar.is_port) {
        bar.address &= ~std::uint64_t{3};
        bar.size_bytes = (~(mask & ~std::uint32_t{3}) + 1) & 0xffff;
    } else if (mask) {
        std::uint64_t upper_address = 0;
        std::uint64_t wide_mask = 0xffffffff00000000 | (mask & ~std::uint32_t{15});
        if (bar.is_64_bit)
            wide_mask =
                std::uint64_t{size_register(offset + 4, upper_address)} << 32 | (mask & ~std::uint32_t{15});
        bar.address = upper_address << 32 | (address & ~std::uint64_t{15});
        bar.size_bytes = ~wide_mask + 1;
        if (!bar.address) {
            bar.address = place(bar.size_bytes);
            write32(offset, static_cast<std::uint32_t>(bar.address));
            if (bar.is_64_bit) write32(offset + 4, static_cast<std::uint32_t>(bar.address >> 32));
        }
        reach(bar.address, bar.size_bytes);
    }
    write16(pci::command, command);
    return bar;
}

// Which bits of the register can be set; its value is kept.
std::uint32_t PciFunction::size_register(unsigned offset, std::uint64_t& value) const {
    const std::uint32_t kept = read32(offset);
    write32(offset, 0xffffffff);
    const std::uint32_t mask = read32(offset);
    write32(offset, kept);
    value = kept;
    return mask;
}

unsigned PciFunction::capability(std::uint8_t id) const {
    if (!(read16(0x06) & 0x10)) return 0;
    unsigned offset = read8(0x34) & 0xfc;
    for (unsigned i = 0; offset && i < max_capabilities; ++i) {
        if (read8(offset) == id) return offset;
        offset = read8(offset + 1) & 0xfc;
    }
    return 0;
}

unsigned PciFunction::use_msix(std::uint8_t first_vector, unsigned max_vectors) const {
    const unsigned offset = capability(pci::msix);
    if (!offset) return 0;
    const std::uint16_t control = read16(offset + 2);
    unsigned vectors = (control & 0x7ff) + 1u;
    if (vectors > max_vectors) vectors = max_vectors;
    const std::uint32_t table = read32(offset + 4);
    const std::uint64_t entries = bar(table & 7).address + (table & ~std::uint32_t{7});
    enable();
    write16(offset + 2, static_cast<std::uint16_t>(control | 0x8000));
    for (unsigned i = 0; i < vectors; ++i) {
        write_device<std::uint32_t>(entries + 16 * i, message_address);
        write_device<std::uint32_t>(entries + 16 * i + 4, 0);
        write_device<std::uint32_t>(entries + 16 * i + 8, first_vector + i);
        write_device<std::uint32_t>(entries + 16 * i + 12, 0);
    }
    return vectors;
}

bool PciFunction::use_msi(std::uint8_t vector) const {
    const unsigned offset = capability(pci::msi);
    if (!offset) return false;
    const std::uint16_t control = read16(offset + 2);
    write32(offset + 4, message_address);
    if (control & 0x80) write32(offset + 8, 0);
    write16(offset + (control & 0x80 ? 12 : 8), vector);
    write16(offset + 2, static_cast<std::uint16_t>((control & ~0x70) | 1));
    return true;
}

bool find_pci(std::uint16_t vendor, std::uint16_t device, unsigned index, PciFunction& found) {
    for (unsigned slot = 0; slot < 32; ++slot) {
        unsigned functions = 1;
        for (unsigned number = 0; number < functions; ++number) {
            const PciFunction function(slot, number);
            const std::uint32_t identity = function.read32(0);
            if ((identity & 0xffff) == 0xffff) continue;
            if (number == 0 && function.read8(pci::header_type) & 0x80) functions = 8;
            if (identity != (std::uint32_t{device} << 16 | vendor) || index--) continue;
            found = function;
            return true;
        }
    }
    return false;
}

}  // namespace guestmem::payload
