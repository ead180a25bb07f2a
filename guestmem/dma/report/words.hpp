// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "guestmem/dma/inventory.hpp"

/// Small texts that the tree, the picture and the JSON of an inventory have in common.
///
/// Contract: names come from firmware tables, captured files and users. clean() makes them fit for a terminal and for
/// XML 1.0: whatever is not a printable ASCII character becomes '?'.
/// Threads: any.

namespace guestmem::dma {

/// Printable ASCII stays; anything else becomes '?'.
[[nodiscard]] std::string clean(std::string_view text);
/// "behind-unit": a word for programs.
[[nodiscard]] std::string code_word(std::string_view text);
/// "4K, 2M, 1G"; of many sizes the smallest and how many more there are. Empty for 0.
[[nodiscard]] std::string page_sizes_text(std::uint64_t page_sizes);
/// "39-bit addresses; pages of 4K, 2M, 1G; remaps interrupts; a device that may write may read, too".
[[nodiscard]] std::string abilities_text(const UnitAbilities& abilities);
/// "0xfee00000 to 0xfeefffff msi".
[[nodiscard]] std::string reserved_text(const Reserved& reserved);
/// "DMAR offset 0x30; kernel".
[[nodiscard]] std::string origins_text(const std::vector<Origin>& origins);
/// "group 6", "groups 6, 7", "no group".
[[nodiscard]] std::string groups_text(const Containment& containment);
/// "00:02.0" or the name of a device that is not PCI.
[[nodiscard]] std::string short_name(const Device& device);

}  // namespace guestmem::dma
