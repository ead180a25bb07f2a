// SPDX-License-Identifier: Apache-2.0
#include "bench/mem/maps.hpp"

#include <utility>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/layout.hpp"

namespace guestmem::bench {

std::shared_ptr<const MemoryMap> map_over(std::span<const RegionPlace> regions,
                                          const std::shared_ptr<const Arena>& arena) {
    const auto memory = HostMemory::borrow(arena->bytes(), MapAccess::read_write, arena).value();
    Layout layout;
    for (const RegionPlace& region : regions)
        layout.add(Region::create({.name = "ram",
                                   .base = GuestAddress{region.base},
                                   .size_bytes = region.size_bytes,
                                   .memory = memory,
                                   .memory_offset_bytes = region.offset})
                       .value());
    return std::move(layout).freeze().value();
}

std::shared_ptr<const MemoryMap> tracked_map_over(std::span<const RegionPlace> regions,
                                                  const std::shared_ptr<const Arena>& arena) {
    std::shared_ptr<const MemoryMap> map = map_over(regions, arena);
    for (const auto& region : map->regions()) GM_CHECK(region->dirty().start().has_value());
    return map;
}

}  // namespace guestmem::bench
