// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "guestmem/dma/inventory.hpp"

/// An inventory as JSON, for programs.
///
/// Contract: one object with "units", "devices", "containments", "kernel_groups", "platform" and "complaints";
/// docs/guide/dma.md has its fields. Addresses are texts, "0xfed90000": a number of JSON loses bits beyond 2^53. A
/// field that is not known is left out. All of it is ASCII, so that a terminal obeys nothing in it. The order is that
/// of the inventory, so that equal inventories give equal texts.
/// Threads: any.

namespace guestmem::dma {

/// Indented by two blanks, with a line end.
[[nodiscard]] std::string to_json(const Inventory& inventory);

}  // namespace guestmem::dma
