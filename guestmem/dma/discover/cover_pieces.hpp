// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "guestmem/dma/discover/acpi_table.hpp"

/// What the readers of mappings (IORT, VIOT, device tree) share: ranges of ids cut into pieces that a cover can say.
///
/// Concepts: a named device that may send with any id of a range is a few covers, each with the bits of the id that
/// do not matter. Where ranges overlap, the first one that firmware gives counts. An IOMMU that is a PCI function is
/// not behind itself, even where its range says so.
/// Contract: the pieces of a range are disjoint, in ascending order, and together the range.
/// Limits: a range is at most 62 blocks.
/// Threads: any; Claims one at a time.
/// Cost: Claims: n log n for n ranges, however they overlap.

namespace guestmem::dma {

/// Ids that differ from `first` in ignored_bits only.
struct IdBlock {
    std::uint32_t first = 0;
    std::uint32_t ignored_bits = 0;
};
/// The range in blocks, each as large as its alignment allows; both ends included.
[[nodiscard]] std::vector<IdBlock> id_blocks(std::uint32_t first, std::uint32_t last);

/// Both ends included.
struct Piece {
    std::uint32_t first = 0;
    std::uint32_t last = 0;
};

/// Which numbers were claimed by the ranges so far.
class Claims {
public:
    /// What of the range nobody claimed before; all of it is claimed then.
    std::vector<Piece> claim(Piece range);

private:
    std::map<std::uint32_t, std::uint32_t> claimed_;  // first to last, disjoint and not touching
};

/// Adds the cover of a PciRange; without the function `self` where the range has it. False when there is no room.
[[nodiscard]] bool add_range_cover(TableFacts& facts, const CoverFact& cover, std::optional<PciAddress> self);

}  // namespace guestmem::dma
