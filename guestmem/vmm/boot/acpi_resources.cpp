// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/acpi_resources.hpp"

#include <utility>

namespace guestmem::vmm {

namespace {

// ACPI 6.5, 6.4.2 and 6.4.3: tags with the length of small descriptors in their low 3 bits.
constexpr std::uint8_t tag_irq = 0x22;
constexpr std::uint8_t tag_ports = 0x47;
constexpr std::uint8_t tag_end = 0x79;
constexpr std::uint8_t tag_dword_space = 0x87;
constexpr std::uint8_t tag_word_space = 0x88;
constexpr std::uint8_t tag_interrupt = 0x89;
constexpr std::uint8_t tag_qword_space = 0x8a;

constexpr std::uint8_t kind_memory = 0;
constexpr std::uint8_t kind_ports = 1;
constexpr std::uint8_t kind_bus = 2;

constexpr std::uint8_t flag_consumer = 0x01;
constexpr std::uint8_t flags_fixed_ends = 0x0c;     // neither end moves
constexpr std::uint8_t flags_all_ports = 0x03;      // ISA ports and others
constexpr std::uint8_t flag_writable = 0x01;        // memory, not cached
constexpr std::uint8_t flags_cacheable = 0x03;      // memory, writable, cached: large BARs live here
constexpr std::uint8_t flags_edge_consumer = 0x03;  // edge, active high, exclusive

}  // namespace

void AcpiResources::little(std::uint64_t value, unsigned count_bytes) {
    for (unsigned i = 0; i < count_bytes; ++i) bytes_.push_back(static_cast<std::byte>(value >> 8 * i));
}

void AcpiResources::address_space(const AddressSpace& space) {
    little(space.tag, 1);
    little(3 + 5 * space.field_bytes, 2);
    little(space.kind, 1);
    little(space.general_flags, 1);
    little(space.kind_flags, 1);
    little(0, space.field_bytes);  // granularity
    little(space.first, space.field_bytes);
    little(space.last, space.field_bytes);
    little(0, space.field_bytes);  // no translation
    little(space.last - space.first + 1, space.field_bytes);
}

AcpiResources& AcpiResources::ports(std::uint16_t first, std::uint8_t count) {
    little(tag_ports, 1);
    little(1, 1);  // 16 bits are decoded
    little(first, 2);
    little(first, 2);
    little(1, 1);  // alignment
    little(count, 1);
    return *this;
}

AcpiResources& AcpiResources::interrupt(std::uint32_t gsi) {
    if (gsi < 16) {
        little(tag_irq, 1);
        little(std::uint64_t{1} << gsi, 2);
    } else {
        little(tag_interrupt, 1);
        little(6, 2);
        little(flags_edge_consumer, 1);
        little(1, 1);
        little(gsi, 4);
    }
    return *this;
}

AcpiResources& AcpiResources::fixed_memory(const GuestRange& range) {
    address_space({.tag = tag_qword_space,
                   .field_bytes = 8,
                   .kind = kind_memory,
                   .general_flags = flags_fixed_ends | flag_consumer,
                   .kind_flags = flag_writable,
                   .first = range.base().value(),
                   .last = range.last().value()});
    return *this;
}

AcpiResources& AcpiResources::bus_window(std::uint8_t first, std::uint8_t last) {
    address_space({.tag = tag_word_space,
                   .field_bytes = 2,
                   .kind = kind_bus,
                   .general_flags = flags_fixed_ends,
                   .first = first,
                   .last = last});
    return *this;
}

AcpiResources& AcpiResources::port_window(std::uint16_t first, std::uint16_t last) {
    // A length of 2^16 has no word: double words.
    address_space({.tag = tag_dword_space,
                   .field_bytes = 4,
                   .kind = kind_ports,
                   .general_flags = flags_fixed_ends,
                   .kind_flags = flags_all_ports,
                   .first = first,
                   .last = last});
    return *this;
}

AcpiResources& AcpiResources::memory_window_32(const GuestRange& range) {
    address_space({.tag = tag_dword_space,
                   .field_bytes = 4,
                   .kind = kind_memory,
                   .general_flags = flags_fixed_ends,
                   .kind_flags = flag_writable,
                   .first = range.base().value(),
                   .last = range.last().value()});
    return *this;
}

AcpiResources& AcpiResources::memory_window_64(const GuestRange& range) {
    address_space({.tag = tag_qword_space,
                   .field_bytes = 8,
                   .kind = kind_memory,
                   .general_flags = flags_fixed_ends,
                   .kind_flags = flags_cacheable,
                   .first = range.base().value(),
                   .last = range.last().value()});
    return *this;
}

std::vector<std::byte> AcpiResources::take() {
    little(tag_end, 1);
    little(0, 1);  // a checksum of 0 counts as right
    return std::exchange(bytes_, {});
}

}  // namespace guestmem::vmm
