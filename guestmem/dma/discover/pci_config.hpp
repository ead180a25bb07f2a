// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/dma/host_view.hpp"

/// PCI configuration space: bytes become the fields of a PciFunction.
///
/// Concepts: the kernel gives 4096 bytes of a PCI Express function, 256 of another one, and the first 64 to users
/// without privileges. The header is in the 64; capabilities (PCI Express, MSI) are in the first 256, extended ones
/// (ACS, ATS) behind them.
/// Contract: what needs bytes that are not there is left as it is: a field without a guess. A list of capabilities
/// that runs in a circle or leads out of the space is followed up to there and told in ConfigNotes::problem. A
/// function of all ones does not answer: it is told too, and nothing but its vendor is read. Only the fields that
/// configuration space has are written: not address, driver, group and what else sysfs says.
/// Layouts: PCI Local Bus 3.0 chapter 6, PCI Express Base 4.0 chapter 7.
/// Threads: any.
/// Cost: each capability is looked at once; no allocation where nothing is wrong.

namespace guestmem::dma {

inline constexpr std::size_t config_header_bytes = 64;
inline constexpr std::size_t config_conventional_bytes = 256;
inline constexpr std::size_t config_bytes = 4096;

struct ConfigNotes {
    bool is_cut = false;       ///< it has capabilities, and they are not among the bytes
    std::string problem = {};  ///< empty: none
};

/// An error when the bytes are fewer than the header's.
[[nodiscard]] Result<ConfigNotes> read_pci_config(std::span<const std::byte> bytes, PciFunction& function);

/// Sets to zero what names one specimen: the Device Serial Number (often a MAC address) and the window of the Vital
/// Product Data.
void blank_serial_numbers(std::span<std::byte> bytes);

}  // namespace guestmem::dma
