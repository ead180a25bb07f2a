// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "guestmem/dma/inventory.hpp"

/// An inventory as a picture: a box per unit on the left, its buses, and on the right a box per containment with the
/// devices in it.
///
/// Contract: SVG 1.1 that needs no other file, well-formed whatever the names in the inventory are. Green: the kernel
/// uses the unit; red: the devices reach all memory. Reasons why devices are together are shown as tooltips (`title`).
/// Cost: proportional to the devices.
/// Threads: any.

namespace guestmem::dma {

[[nodiscard]] std::string to_svg(const Inventory& inventory);

}  // namespace guestmem::dma
