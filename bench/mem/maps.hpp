// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>

#include "bench/mem/workload.hpp"
#include "guestmem/mem/memory_map.hpp"

/// This library's maps of a layout.
///
/// Contract: no mapping is made; the regions are added in the order given, and each shows its part of the arena.
/// Threads: any.
/// Lifetime: the map holds the arena.

namespace guestmem::bench {

[[nodiscard]] std::shared_ptr<const MemoryMap> map_over(std::span<const RegionPlace> regions,
                                                        const std::shared_ptr<const Arena>& arena);

/// The same with the dirty tracker of each region on.
[[nodiscard]] std::shared_ptr<const MemoryMap> tracked_map_over(std::span<const RegionPlace> regions,
                                                                const std::shared_ptr<const Arena>& arena);

}  // namespace guestmem::bench
