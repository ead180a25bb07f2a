// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "guestmem/dma/grants.hpp"

/// Granted ranges as mappings: rounded to a unit's pages, laid over each other, joined where they can be.
///
/// Concepts: the granule is the smallest page of the unit. Ranges of one memory that touch and agree become one; a
/// mapping never spans two memories, whose bytes are in different places of the VM's process.
/// Contract: what is covered by the mappings is what the ranges cover, and besides only what rounding adds; where
/// ranges lie over each other, the mapping has the permissions of all of them. Mappings are by address and do not
/// overlap. A memory that does not begin and end at whole granules is said, and its mapping ends with its last whole
/// granule.
/// Cost: n log n.
/// Threads: any.

namespace guestmem::dma {

struct ReachMapping {
    std::uint64_t iova = 0;
    std::uint64_t size_bytes = 0;
    Permission permission = {};
    std::size_t memory = 0;

    friend bool operator==(const ReachMapping&, const ReachMapping&) = default;
};

struct Reach {
    std::vector<ReachMapping> mappings = {};
    std::uint64_t grown_bytes = 0;                     ///< reached by rounding alone
    std::optional<std::uint64_t> first_conflict = {};  ///< ranges as written overlap with other permissions
    std::optional<std::uint64_t> first_grown_conflict = {};  ///< they do so by rounding alone
    std::optional<std::size_t> ragged_memory = {};           ///< does not begin or end at a whole granule
};

/// `granule` is a power of two.
[[nodiscard]] Reach reach_of(std::span<const VmMemory> memory, const GrantedDevice& device,
                             std::uint64_t granule);

/// Leaf entries of a unit's tables for a range of which each `backing_page_bytes` lie together; `page_sizes` has a bit
/// per size that the unit has.
[[nodiscard]] std::uint64_t count_page_entries(std::uint64_t iova, std::uint64_t size_bytes,
                                               std::uint64_t page_sizes, std::uint64_t backing_page_bytes);

}  // namespace guestmem::dma
