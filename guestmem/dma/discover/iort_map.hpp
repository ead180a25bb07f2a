// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "guestmem/dma/discover/acpi_table.hpp"

/// The ID mappings of one IORT node as pieces that do not overlap: which ids go where.
///
/// Concepts: a mapping's count field is the number of ids minus 1. Some firmware writes the number itself, so that
/// each mapping has one id too much, where the next one begins. The kernel lives with it: that a mapping has its last
/// id counts only until another mapping begins with that id; else the first mapping in the table that has an id
/// counts.
/// Contract: the pieces are disjoint, in ascending order, and for each id what the kernel's iort_id_map() finds by
/// looking through the mappings. A mapping with the single flag takes all ids that no earlier one took, to its output
/// base. A mapping that leads nowhere (reference 0), whose ids go past 32 bits, or that has the single flag where it
/// may not be, is a complaint and is not used.
/// Limits: `unordered_left` mappings that are in no order; a node with more is not used.
/// Threads: any; a plain function.
/// Cost: linear for mappings in ascending order, else n log n.

namespace guestmem::dma {

inline constexpr std::size_t iort_mapping_bytes = 20;

struct IortMapping {
    std::size_t offset = 0;  ///< in the table
    std::uint32_t input_base = 0;
    std::uint32_t count_minus_1 = 0;
    std::uint32_t output_base = 0;
    std::uint32_t output_node = 0;
    bool is_single = false;

    [[nodiscard]] std::uint32_t last() const { return input_base + count_minus_1; }
    [[nodiscard]] bool is_past_the_end() const { return last() < input_base; }
};

/// `at` is where it begins in `node`.
[[nodiscard]] IortMapping read_iort_mapping(const TableBytes& node, std::size_t at);

struct IortPiece {
    std::uint32_t first = 0;
    std::uint32_t last = 0;
    std::uint32_t output_base = 0;  ///< what `first` becomes
    std::uint32_t output_node = 0;
    std::uint32_t offset = 0;  ///< of its mapping
    bool is_shared = false;    ///< all become output_base
};

enum class SingleMapping : std::uint8_t { is_allowed, is_an_error };

[[nodiscard]] std::vector<IortPiece> iort_pieces(const std::vector<IortMapping>& mappings,
                                                 SingleMapping single, std::size_t& unordered_left,
                                                 TableFacts& facts);

}  // namespace guestmem::dma
