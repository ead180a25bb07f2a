// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/map_diff.hpp"

#include <cstddef>

namespace guestmem {
namespace {

/// Whether a guest sees the same bytes at the same addresses, and may do the same with them. A device has no bytes.
bool looks_the_same(const Region& a, const Region& b) {
    return a.range() == b.range() && a.host_base() == b.host_base() && a.is_writable() == b.is_writable();
}

}  // namespace

MapDiff diff_maps(const MemoryMap& before, const MemoryMap& after) {
    return diff_regions(before.regions(), after.regions());
}

MapDiff diff_regions(std::span<const std::shared_ptr<const Region>> before,
                     std::span<const std::shared_ptr<const Region>> after) {
    MapDiff diff;
    std::size_t old = 0;
    std::size_t now = 0;
    while (old < before.size() && now < after.size()) {
        const GuestAddress old_base = before[old]->range().base();
        const GuestAddress now_base = after[now]->range().base();
        if (old_base < now_base) {
            diff.removed.push_back(before[old++]);
        } else if (now_base < old_base) {
            diff.added.push_back(after[now++]);
        } else {
            if (before[old] == after[now]) {
                // Unchanged.
            } else if (looks_the_same(*before[old], *after[now])) {
                diff.changed.push_back({before[old], after[now]});
            } else {
                diff.removed.push_back(before[old]);
                diff.added.push_back(after[now]);
            }
            ++old;
            ++now;
        }
    }
    for (const auto& region : before.subspan(old)) diff.removed.push_back(region);
    for (const auto& region : after.subspan(now)) diff.added.push_back(region);
    return diff;
}

}  // namespace guestmem
