// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "guestmem/dma/inventory.hpp"

/// An inventory as a tree for a terminal: units, buses, what can only be contained together, devices.
///
/// Contract: the text has no control character but the line end, whatever the names in the inventory are. Devices
/// behind no unit that the kernel uses come last, under their own heads. Bridges, and IOMMUs that are PCI functions,
/// are shown where they are part of a containment with other devices, and counted elsewhere, unless `has_bridges`.
/// Threads: any.
/// Example output:
///     vtd@fed90000  VT-d, kernel's dmar0, from: DMAR offset 0x30; kernel
///     |  39-bit addresses; pages of 4K, 2M, 1G; remaps interrupts; a device that may write may read, too
///     +- bus 0000:00
///     |  +- 00:03.0  1234:11e8 unclassified device, group 1, driver vfio-pci
///     |  +- only together, group 6: 2 devices
///     |     +- 00:08.0  1234:11e8 unclassified device
///     |     +- 00:08.1  1234:11e8 unclassified device
///     |     +- because 00:08.0 and 00:08.1 are functions of one device without ACS

namespace guestmem::dma {

struct TreeStyle {
    bool is_unicode = false;   ///< lines of box-drawing characters
    bool has_bridges = false;  ///< bridges and IOMMUs that are alone in their containment, too
    bool has_details = false;  ///< identities, reserved ranges and origins of each device
};

[[nodiscard]] std::string to_tree(const Inventory& inventory, const TreeStyle& style = {});

}  // namespace guestmem::dma
