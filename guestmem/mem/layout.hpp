// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/memory_map.hpp"
#include "guestmem/mem/region.hpp"

/// Regions being gathered, in any order: it can still be wrong. Frozen, it is a map, which cannot.
///
/// Contract: `freeze` checks all regions against each other and against the granule, and names every problem at
/// once, one per line: regions that overlap (both names, and where), bases and sizes that are not whole granules.
/// An empty layout freezes into an empty map.
/// Limits: LookupIndex::max_regions regions.
/// Threads: one at a time.
/// Cost: sorting, n log n; a layout that is in order already is not sorted again.
/// Example (examples/guest_memory.cpp):
///     Layout layout;
///     layout.add(high).add(low);
///     const auto map = GM_TRY(std::move(layout).freeze());

namespace guestmem {

struct LayoutOptions {
    /// Bases and sizes are multiples of it, a power of two. KVM's memory slots want pages; 1 takes any.
    std::uint64_t granule_bytes = page_size_bytes;
};

class Layout {
public:
    Layout() : Layout(LayoutOptions{}) {}
    explicit Layout(LayoutOptions options) : options_(options) {}
    /// A map's regions and granule, to change them.
    [[nodiscard]] static Layout from(const MemoryMap& map);

    Layout& add(std::shared_ptr<const Region> region);

    [[nodiscard]] Result<std::shared_ptr<const MemoryMap>> freeze() &&;

private:
    [[nodiscard]] Result<void> check() const;

    LayoutOptions options_;
    std::vector<std::shared_ptr<const Region>> regions_;
};

}  // namespace guestmem
