// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/layout.hpp"

/// Maps that follow one another, for tests of what becomes of the second one.
///
/// Contract: each map keeps about half of the regions of the map before it and has some others: 1 to 4 pages each, of
/// all kinds, in the lowest 19 pages, so that they collide; their bytes come from three memories, so that the same
/// bytes come back. Now and then the dirty tracker of a region is switched. The same seed makes the same maps.
/// Threads: one at a time.
/// Example:
///     RandomMaps maps{seed};
///     const auto before = maps.next();
///     const auto after = maps.next();

namespace guestmem::testing {

class RandomMaps {
    using RegionPtr = std::shared_ptr<const Region>;

public:
    explicit RandomMaps(std::uint32_t seed) : random_(seed) {
        for (int i = 0; i < 3; ++i)
            memories_.push_back(HostMemory::create_anonymous({.size_bytes = 4 * page_size_bytes}).value());
    }
    [[nodiscard]] std::uint64_t below(std::uint64_t bound) { return random_() % bound; }

    [[nodiscard]] std::shared_ptr<const MemoryMap> next() {
        std::vector<RegionPtr> chosen;
        const auto try_add = [&](const RegionPtr& one) {
            const auto overlaps = [&](const RegionPtr& other) {
                return other->range().overlaps(one->range());
            };
            if (std::ranges::none_of(chosen, overlaps)) chosen.push_back(one);
        };
        for (const RegionPtr& one : last_)
            if (below(2) == 0) try_add(one);
        for (std::uint64_t i = below(8); i > 0; --i) try_add(make_region());
        for (const RegionPtr& one : chosen)
            if (below(one->dirty().is_on() ? 4 : 8) == 0) toggle(*one);
        last_ = chosen;
        Layout layout;
        for (const RegionPtr& one : chosen) layout.add(one);
        return std::move(layout).freeze().value();
    }

private:
    static void toggle(const Region& region) {
        GM_CHECK(region.dirty().is_on() ? region.dirty().stop() : region.dirty().start());
    }
    [[nodiscard]] RegionPtr make_region() {
        const auto kind = static_cast<RegionKind>(below(4));
        RegionOptions options{.name = "r",
                              .base = GuestAddress{below(16) * page_size_bytes},
                              .size_bytes = (1 + below(4)) * page_size_bytes,
                              .kind = kind};
        if (kind != RegionKind::device) {
            const std::uint64_t count_left = 4 - options.size_bytes / page_size_bytes;
            options.memory = memories_[below(memories_.size())];
            options.memory_offset_bytes = below(count_left + 1) * page_size_bytes;
        }
        return Region::create(std::move(options)).value();
    }

    std::mt19937 random_;
    std::vector<std::shared_ptr<const HostMemory>> memories_;
    std::vector<RegionPtr> last_;
};

}  // namespace guestmem::testing
