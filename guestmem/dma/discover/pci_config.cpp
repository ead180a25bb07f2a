// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/pci_config.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bitset>
#include <cstdint>
#include <optional>

#include "guestmem/base/endian.hpp"

namespace guestmem::dma {
namespace {

using Bytes = std::span<const std::byte>;

// Registers of the header.
constexpr std::size_t vendor_at = 0x00;
constexpr std::size_t device_at = 0x02;
constexpr std::size_t status_at = 0x06;
constexpr std::size_t class_at = 0x08;
constexpr std::size_t header_type_at = 0x0e;
constexpr std::size_t first_bar_at = 0x10;
constexpr std::size_t cardbus_capabilities_at = 0x14;
constexpr std::size_t secondary_bus_at = 0x19;
constexpr std::size_t subordinate_bus_at = 0x1a;
constexpr std::size_t capabilities_at = 0x34;
constexpr unsigned status_has_capabilities = 1 << 4;

// Capabilities.
constexpr unsigned vital_product_data = 0x03;
constexpr unsigned message_interrupts = 0x05;
constexpr unsigned express = 0x10;
constexpr unsigned message_interrupts_x = 0x11;
// Extended capabilities.
constexpr unsigned device_serial_number = 0x0003;
constexpr unsigned access_control_services = 0x000d;
constexpr unsigned address_translation_services = 0x000f;

/// Nothing beyond the end.
template <typename T>
std::optional<T> load(Bytes bytes, std::size_t at) {
    if (at > bytes.size() || bytes.size() - at < sizeof(T)) return std::nullopt;
    return load_little<T>(bytes.subspan(at).first<sizeof(T)>());
}

/// Of the header, which is there.
template <typename T>
T load_header(Bytes bytes, std::size_t at) {
    return load_little<T>(bytes.subspan(at).first<sizeof(T)>());
}

/// Calls use(id, offset) for each capability; what is wrong with the list, or an empty text.
template <typename Use>
std::string for_each_capability(Bytes bytes, std::size_t pointer_at, Use&& use) {
    std::bitset<config_conventional_bytes / 4> seen;
    std::size_t at = load_header<std::uint8_t>(bytes, pointer_at) & 0xfcU;
    while (at != 0) {
        if (at < config_header_bytes)
            return fmt::format("its list of capabilities leads into the header, to {:#x}", at);
        if (seen[at / 4]) return fmt::format("its list of capabilities runs in a circle through {:#x}", at);
        seen.set(at / 4);
        const auto id = load<std::uint8_t>(bytes, at);
        const auto next = load<std::uint8_t>(bytes, at + 1);
        if (!id || !next) return fmt::format("its list of capabilities leads out of its space, to {:#x}", at);
        if (*id == 0xff) return fmt::format("its list of capabilities ends in ones at {:#x}", at);
        use(unsigned{*id}, at);
        at = *next & 0xfcU;
    }
    return {};
}

template <typename Use>
std::string for_each_extended(Bytes bytes, Use&& use) {
    std::bitset<config_bytes / 4> seen;
    std::size_t at = config_conventional_bytes;
    while (at != 0) {
        if (at < config_conventional_bytes)
            return fmt::format("its list of extended capabilities leads to {:#x}", at);
        if (seen[at / 4])
            return fmt::format("its list of extended capabilities runs in a circle through {:#x}", at);
        seen.set(at / 4);
        const auto head = load<std::uint32_t>(bytes, at);
        if (!head)
            return fmt::format("its list of extended capabilities leads out of its space, to {:#x}", at);
        // Zero is an empty list; ones are what a space that is not there reads as.
        if (*head == 0 || *head == 0xffff'ffff) return {};
        use(*head & 0xffffU, at);
        at = (*head >> 20) & 0xffcU;
    }
    return {};
}

std::size_t capabilities_pointer(const PciFunction& function) {
    return function.header_type == 2 ? cardbus_capabilities_at : capabilities_at;
}

/// Of the first memory BAR with an address.
std::optional<std::uint64_t> first_memory(Bytes bytes, std::uint8_t header_type) {
    const std::size_t count = header_type == 0 ? 6 : header_type == 1 ? 2 : 0;
    for (std::size_t i = 0; i < count; ++i) {
        const auto low = load_header<std::uint32_t>(bytes, first_bar_at + 4 * i);
        if ((low & 1) != 0) continue;
        std::uint64_t address = low & ~0xfU;
        const bool is_wide = (low & 6) == 4 && i + 1 < count;
        if (is_wide) {
            ++i;
            address |= std::uint64_t{load_header<std::uint32_t>(bytes, first_bar_at + 4 * i)} << 32;
        }
        if (address != 0) return address;
    }
    return std::nullopt;
}

PortType port_of(unsigned type) {
    switch (type) {
        case 0: return PortType::endpoint;
        case 1: return PortType::legacy_endpoint;
        case 4: return PortType::root_port;
        case 5: return PortType::upstream_port;
        case 6: return PortType::downstream_port;
        case 7: return PortType::express_to_pci_bridge;
        case 8: return PortType::pci_to_express_bridge;
        case 9: return PortType::integrated_endpoint;
        case 10: return PortType::event_collector;
        default: return PortType::endpoint;
    }
}

void read_header(Bytes bytes, PciFunction& function) {
    function.vendor = load_header<std::uint16_t>(bytes, vendor_at);
    function.device = load_header<std::uint16_t>(bytes, device_at);
    function.class_code = load_header<std::uint32_t>(bytes, class_at) >> 8;
    const auto type = load_header<std::uint8_t>(bytes, header_type_at);
    function.header_type = type & 0x7f;
    function.is_multifunction = (type & 0x80) != 0;
    if (function.header_type == 1 || function.header_type == 2) {
        function.secondary_bus = load_header<std::uint8_t>(bytes, secondary_bus_at);
        function.subordinate_bus = load_header<std::uint8_t>(bytes, subordinate_bus_at);
    }
    function.first_register = first_memory(bytes, function.header_type);
}

void read_capability(Bytes bytes, unsigned id, std::size_t at, PciFunction& function, bool& is_express) {
    if (id == message_interrupts || id == message_interrupts_x) function.has_msi = true;
    if (id != express || is_express) return;
    const auto flags = load<std::uint16_t>(bytes, at + 2);
    if (!flags) return;
    is_express = true;
    function.port = port_of(*flags >> 4 & 0xfU);
    function.has_slot = (*flags & 1 << 8) != 0;
}

void read_extended(Bytes bytes, unsigned id, std::size_t at, PciFunction& function) {
    if (id == address_translation_services) function.has_address_services = true;
    if (id != access_control_services) return;
    const auto can = load<std::uint16_t>(bytes, at + 4);
    const auto is_on = load<std::uint16_t>(bytes, at + 6);
    if (can && is_on) function.access_control = AccessControl{.can = *can, .is_on = *is_on, .is_present = true};
}

/// There is none of what the lists would tell.
void tell_no_extended(PciFunction& function) {
    function.access_control = AccessControl{};
    function.has_address_services = false;
}

}  // namespace

Result<ConfigNotes> read_pci_config(std::span<const std::byte> bytes, PciFunction& function) {
    if (bytes.size() < config_header_bytes)
        return Error{Errc::corrupt, fmt::format("configuration space of {} bytes: the header has {}",
                                                bytes.size(), config_header_bytes)};
    bytes = bytes.first(std::min(bytes.size(), config_bytes));
    ConfigNotes notes;
    // A virtual function has ones for vendor and device, too, but not for its header's type.
    if (load_header<std::uint8_t>(bytes, header_type_at) == 0xff) {
        notes.problem = "it does not answer: its configuration space is all ones";
        return notes;
    }
    read_header(bytes, function);
    if ((load_header<std::uint16_t>(bytes, status_at) & status_has_capabilities) == 0) {
        function.has_msi = false;
        tell_no_extended(function);
        return notes;
    }
    if (bytes.size() < config_conventional_bytes) {
        notes.is_cut = true;
        return notes;
    }
    bool is_express = false;
    function.has_msi = false;
    notes.problem = for_each_capability(
        bytes.first(config_conventional_bytes), capabilities_pointer(function),
        [&](unsigned id, std::size_t at) { read_capability(bytes, id, at, function, is_express); });
    // PCI-X of mode 2 has extended capabilities, too, none of them of these.
    if (!is_express) {
        tell_no_extended(function);
        return notes;
    }
    if (bytes.size() < config_bytes) {
        notes.is_cut = true;
        return notes;
    }
    tell_no_extended(function);
    const std::string problem = for_each_extended(
        bytes, [&](unsigned id, std::size_t at) { read_extended(bytes, id, at, function); });
    if (notes.problem.empty()) notes.problem = problem;
    return notes;
}

void blank_serial_numbers(std::span<std::byte> bytes) {
    if (bytes.size() < config_conventional_bytes) return;
    const auto blank = [&](std::size_t at, std::size_t count) {
        if (at < bytes.size())
            std::ranges::fill(bytes.subspan(at, std::min(count, bytes.size() - at)), std::byte{0});
    };
    PciFunction function;
    function.header_type = std::to_integer<std::uint8_t>(bytes[header_type_at] & std::byte{0x7f});
    // An unfinished list is blanked as far as it goes.
    (void)for_each_capability(bytes.first(config_conventional_bytes), capabilities_pointer(function),
                              [&](unsigned id, std::size_t at) {
                                  if (id == vital_product_data) blank(at + 4, 4);
                              });
    (void)for_each_extended(bytes.first(std::min(bytes.size(), config_bytes)),
                            [&](unsigned id, std::size_t at) {
                                if (id == device_serial_number) blank(at + 4, 8);
                            });
}

}  // namespace guestmem::dma
