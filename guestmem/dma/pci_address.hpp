// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

/// Where a PCI function is: segment, bus, device, function.
///
/// Concepts: the requester id (RID) is bus, device and function in 16 bits, as it travels with each DMA request.
/// The order of addresses is that of segment and then RID.
/// Contract: the text form is "0000:00:02.0" as sysfs has it; a text without segment means segment 0.
/// Threads: any; a plain value.

namespace guestmem::dma {

struct PciAddress {
    std::uint16_t segment = 0;
    std::uint16_t rid = 0;

    [[nodiscard]] constexpr std::uint8_t bus() const { return static_cast<std::uint8_t>(rid >> 8); }
    [[nodiscard]] constexpr std::uint8_t device() const { return (rid >> 3) & 0x1f; }
    [[nodiscard]] constexpr std::uint8_t function() const { return rid & 7; }

    friend constexpr auto operator<=>(const PciAddress&, const PciAddress&) = default;
};

/// Device is at most 31 and function at most 7; higher bits are dropped.
[[nodiscard]] constexpr PciAddress pci_address(std::uint16_t segment, std::uint8_t bus, std::uint8_t device,
                                               std::uint8_t function) {
    return {segment, static_cast<std::uint16_t>(bus << 8 | (device & 0x1f) << 3 | (function & 7))};
}

/// "0000:00:02.0".
[[nodiscard]] std::string to_string(PciAddress address);
/// "00:02.0" when the segment is 0, else as to_string: for tables that people read.
[[nodiscard]] std::string to_short_string(PciAddress address);
/// Hexadecimal, as sysfs and lspci write it: "0000:00:02.0", "00:02.0". Nothing when it is not an address.
[[nodiscard]] std::optional<PciAddress> parse_pci_address(std::string_view text);

}  // namespace guestmem::dma
