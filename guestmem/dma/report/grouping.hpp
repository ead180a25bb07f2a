// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "guestmem/dma/inventory.hpp"

/// The order in which an inventory is shown: heads, in each head buses, in each bus containments.
///
/// Concepts: a head is a unit, or one of the two places behind no unit that works. A containment is shown where its
/// first device is that is no bridge.
/// Contract: every containment that is shown is in one bus of one head; heads of units are there even when they are
/// empty, the other two only when something is in them.
/// Lifetime: the inventory outlives what refers to its containments.
/// Threads: any.

namespace guestmem::dma {

struct ShownBus {
    std::string name = {};  ///< "0000:00"; empty: not on PCI
    std::vector<const Containment*> containments = {};
};

struct ShownHead {
    const Unit* unit = nullptr;  ///< nullptr: behind no unit that works
    std::string text = {};
    bool is_protected = false;
    std::vector<ShownBus> buses = {};
};

struct Shown {
    std::vector<ShownHead> heads = {};
    std::size_t count_hidden = 0;  ///< bridges and IOMMUs that stand alone
};

[[nodiscard]] Shown show(const Inventory& inventory, bool has_bridges);

}  // namespace guestmem::dma
