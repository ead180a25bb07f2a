// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "guestmem/dma/host_view.hpp"

/// What a PCI function is, in words, from its class code.
///
/// Contract: names of classes are those of the PCI Code and ID Assignment Specification, for what machines commonly
/// have; a subclass that is not in the table has the name of its class, and an unknown class is "device".
/// Known holes: vendors and products have numbers only: their names are a list that changes each week.
/// Threads: any.

namespace guestmem::dma {

/// Of a code with class, subclass and interface: 0x020000 is "Ethernet controller".
[[nodiscard]] std::string_view class_name(std::uint32_t class_code);
/// "8086:10d3 Ethernet controller".
[[nodiscard]] std::string device_title(const PciFunction& function);

}  // namespace guestmem::dma
