// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "guestmem/mem/memory_map.hpp"
#include "guestmem/mem/region.hpp"

/// What became of the regions between two maps, as whoever has told somebody else about the first one needs it: KVM
/// its memory slots, an IOMMU its mappings, a vhost back end its table.
///
/// Concepts: the same Region object in both maps is unchanged, and not listed. Another object at the same addresses is
/// *changed* when a guest sees no difference: the same host bytes (or a device as before), writable as before; only
/// its name or tracker differs, or it went from read-only to ROM. All else is removed and added: another size, other
/// host bytes, a move to another address, RAM that becomes read-only, memory that becomes a device.
/// Why: these are KVM's rules for KVM_SET_USER_MEMORY_REGION (virt/kvm/kvm_main.c). It refuses another size, host
/// address or READONLY flag for a slot that exists (EINVAL), and what overlaps another slot (EEXIST). A move it can do
/// in place; here a move is a removal and an addition all the same, since regions that trade places have no order in
/// which moves succeed, and since the guest loses the slot for a moment either way.
/// Contract: each list is in the order of addresses. Apply removed, then changed, then added: after the removals
/// nothing that is added overlaps what is still there. The lists hold their regions, so that nothing is unmapped
/// before it was taken away from whoever was told.
/// Threads: any; plain values.
/// Cost: O(regions of both).
/// Example (examples/exporters.cpp):
///     const MapDiff diff = diff_maps(*before, *after);
///     for (const auto& region : diff.removed) unmap(*region);

namespace guestmem {

/// A region that another one stands in for, which has the same bytes at the same addresses.
struct ChangedRegion {
    std::shared_ptr<const Region> before;
    std::shared_ptr<const Region> after;
};

struct MapDiff {
    std::vector<std::shared_ptr<const Region>> removed;
    std::vector<ChangedRegion> changed;
    std::vector<std::shared_ptr<const Region>> added;

    [[nodiscard]] bool is_empty() const { return removed.empty() && changed.empty() && added.empty(); }
};

[[nodiscard]] MapDiff diff_maps(const MemoryMap& before, const MemoryMap& after);

/// The same for two lists of regions, each in the order of addresses and without overlap.
[[nodiscard]] MapDiff diff_regions(std::span<const std::shared_ptr<const Region>> before,
                                   std::span<const std::shared_ptr<const Region>> after);

}  // namespace guestmem
