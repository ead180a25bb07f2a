// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/inventory.hpp"

#include <algorithm>
#include <charconv>

namespace guestmem::dma {
namespace {

template <typename Number>
std::optional<Number> whole_number(std::string_view text, int base) {
    Number value = 0;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (text.empty() || error != std::errc{} || stop != text.data() + text.size()) {
        return std::nullopt;
    }
    return value;
}

/// "0:18.0": bus, device and function in decimal, as the language of the user's words has them.
std::optional<PciAddress> parse_decimal_address(std::string_view text) {
    const std::size_t colon = text.find(':');
    const std::size_t dot = text.find('.');
    if (colon == std::string_view::npos || dot == std::string_view::npos || dot < colon) {
        return std::nullopt;
    }
    const auto bus = whole_number<std::uint8_t>(text.substr(0, colon), 10);
    const auto device = whole_number<std::uint8_t>(text.substr(colon + 1, dot - colon - 1), 10);
    const auto function = whole_number<std::uint8_t>(text.substr(dot + 1), 10);
    if (!bus || !device || !function || *device > 31 || *function > 7) {
        return std::nullopt;
    }
    return pci_address(0, *bus, *device, *function);
}

std::optional<std::size_t> index_in(const std::vector<Device>& devices,
                                    std::vector<Device>::const_iterator at) {
    return static_cast<std::size_t>(at - devices.begin());
}

}  // namespace

std::string_view to_string(Protection protection) {
    switch (protection) {
        case Protection::behind_unit: return "behind-unit";
        case Protection::unit_not_used: return "unit-not-used";
        case Protection::none: return "none";
    }
    return "none";
}

std::string_view to_string(JoinReason reason) {
    switch (reason) {
        case JoinReason::shared_identity: return "shared-identity";
        case JoinReason::alias: return "alias";
        case JoinReason::conventional_bridge: return "conventional-bridge";
        case JoinReason::missing_acs_port: return "missing-acs-port";
        case JoinReason::missing_acs_function: return "missing-acs-function";
        case JoinReason::unknown_acs: return "unknown-acs";
        case JoinReason::kernel_group: return "kernel-group";
    }
    return "unknown";
}

std::optional<std::size_t> Inventory::find_device(std::string_view name) const {
    constexpr std::string_view pci_prefix = "pci:";
    constexpr std::string_view registers_prefix = "mem:";
    const auto first_other =
        std::ranges::partition_point(devices, [](const Device& device) { return device.pci.has_value(); });
    const auto named =
        std::ranges::lower_bound(first_other, devices.end(), name, std::ranges::less{}, &Device::name);
    if (named != devices.end() && named->name == name) {
        return index_in(devices, named);
    }
    const auto address = name.starts_with(pci_prefix) ? parse_decimal_address(name.substr(pci_prefix.size()))
                                                      : parse_pci_address(name);
    if (address) {
        const auto at = std::ranges::lower_bound(devices.begin(), first_other, address, std::ranges::less{},
                                                 &Device::pci);
        return at != first_other && at->pci == address ? index_in(devices, at) : std::nullopt;
    }
    if (!name.starts_with(registers_prefix)) {
        return std::nullopt;
    }
    std::string_view digits = name.substr(registers_prefix.size());
    if (digits.starts_with("0x") || digits.starts_with("0X")) {
        digits.remove_prefix(2);
    }
    const auto registers = whole_number<std::uint64_t>(digits, 16);
    if (!registers) {
        return std::nullopt;
    }
    // A platform device before a function: registers of the latter can be moved, and then mean something else.
    auto at = std::ranges::find(first_other, devices.end(), registers, &Device::registers);
    if (at == devices.end()) {
        at = std::ranges::find(devices.begin(), first_other, registers, &Device::registers);
        if (at == first_other) {
            return std::nullopt;
        }
    }
    return index_in(devices, at);
}

}  // namespace guestmem::dma
