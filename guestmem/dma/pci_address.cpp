// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/pci_address.hpp"

#include <fmt/format.h>

#include <charconv>

namespace guestmem::dma {
namespace {

/// Takes one to `most_digits` hexadecimal digits off the front.
std::optional<unsigned> take_hexadecimal(std::string_view& text, std::size_t most_digits) {
    unsigned value = 0;
    const char* const end = text.data() + std::min(text.size(), most_digits);
    const auto [stop, error] = std::from_chars(text.data(), end, value, 16);
    if (error != std::errc{} || stop == text.data()) {
        return std::nullopt;
    }
    text.remove_prefix(static_cast<std::size_t>(stop - text.data()));
    return value;
}

bool take_character(std::string_view& text, char wanted) {
    if (text.empty() || text.front() != wanted) {
        return false;
    }
    text.remove_prefix(1);
    return true;
}

}  // namespace

std::string to_string(PciAddress address) {
    return fmt::format("{:04x}:{:02x}:{:02x}.{:x}", address.segment, address.bus(), address.device(),
                       address.function());
}

std::string to_short_string(PciAddress address) {
    return address.segment == 0 ? to_string(address).substr(5) : to_string(address);
}

std::optional<PciAddress> parse_pci_address(std::string_view text) {
    const bool has_segment = text.find(':') != text.rfind(':');
    unsigned segment = 0;
    if (has_segment) {
        const auto found = take_hexadecimal(text, 4);
        if (!found || !take_character(text, ':')) {
            return std::nullopt;
        }
        segment = *found;
    }
    const auto bus = take_hexadecimal(text, 2);
    if (!bus || !take_character(text, ':')) {
        return std::nullopt;
    }
    const auto device = take_hexadecimal(text, 2);
    if (!device || *device > 0x1f || !take_character(text, '.')) {
        return std::nullopt;
    }
    const auto function = take_hexadecimal(text, 1);
    if (!function || *function > 7 || !text.empty()) {
        return std::nullopt;
    }
    return pci_address(static_cast<std::uint16_t>(segment), static_cast<std::uint8_t>(*bus),
                       static_cast<std::uint8_t>(*device), static_cast<std::uint8_t>(*function));
}

}  // namespace guestmem::dma
