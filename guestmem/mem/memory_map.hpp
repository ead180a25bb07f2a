// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/access_error.hpp"
#include "guestmem/mem/lookup_index.hpp"
#include "guestmem/mem/range.hpp"
#include "guestmem/mem/region.hpp"

/// Guest memory at a moment: regions that were proved not to overlap, and the index that finds them.
///
/// Concepts: a Layout gathers regions and freezes into a map. A map never changes; inserting, removing or replacing
/// a region gives another map, which shares the other regions. A LiveMap publishes the current one.
/// Contract: regions are in the order of their addresses. Views (MapView, GuestMemory) read and write through it.
/// Threads: any.
/// Lifetime: shared; it holds its regions.
/// Cost: find_region halves the list of regions; views look up in the index's constant time; another map is O(regions).
/// Example (examples/guest_memory.cpp):
///     Layout layout;
///     layout.add(ram);
///     const std::shared_ptr<const MemoryMap> map = GM_TRY(layout.freeze());
///     const auto grown = GM_TRY(map->with(dimm));

namespace guestmem {

/// Host bytes in a row that an access can reach: the part of a region from an address on.
struct Run {
    std::byte* host = nullptr;
    std::uint64_t size_bytes = 0;
    DirtyTracker* tracker = nullptr;
    std::uint64_t offset = 0;  ///< into the region, for its tracker
};

class MemoryMap {
    struct Token {};
    friend class Layout;

public:
    MemoryMap(Token token, std::vector<std::shared_ptr<const Region>> regions, std::uint64_t granule_bytes);
    MemoryMap(const MemoryMap&) = delete;
    MemoryMap& operator=(const MemoryMap&) = delete;
    ~MemoryMap() = default;

    [[nodiscard]] std::span<const std::shared_ptr<const Region>> regions() const { return regions_; }
    [[nodiscard]] const LookupIndex& index() const { return index_; }
    [[nodiscard]] std::uint64_t granule_bytes() const { return granule_bytes_; }

    /// The region that holds the address, a device's, too; null for a hole.
    [[nodiscard]] std::shared_ptr<const Region> find_region(GuestAddress address) const;
    /// The last address of the last region; nothing for an empty map.
    [[nodiscard]] std::optional<GuestAddress> last() const;
    /// The bytes of all regions that are memory.
    [[nodiscard]] std::uint64_t memory_bytes() const;

    /// Whether all of the range may be read, or written; the error names the first byte that may not.
    [[nodiscard]] AccessResult<void> check_range(const GuestRange& range, Access access) const;

    /// The bytes from the address on, up to the end of their region. For views.
    [[nodiscard]] AccessResult<Run> find_run(GuestAddress address, Access access) const;

    /// A map with one region more.
    [[nodiscard]] Result<std::shared_ptr<const MemoryMap>> with(std::shared_ptr<const Region> region) const;
    /// A map without the region of exactly this range.
    [[nodiscard]] Result<std::shared_ptr<const MemoryMap>> without(const GuestRange& range) const;
    /// A map where `region` stands in for the one of exactly this range.
    [[nodiscard]] Result<std::shared_ptr<const MemoryMap>> with_replaced(
        const GuestRange& range, std::shared_ptr<const Region> region) const;

private:
    [[nodiscard]] AccessError refuse(GuestAddress address, Access access) const;
    /// The number of the region with exactly this range.
    [[nodiscard]] Result<std::size_t> number_of(const GuestRange& range, std::string_view what) const;

    std::vector<std::shared_ptr<const Region>> regions_;
    std::uint64_t granule_bytes_;
    LookupIndex index_;
};

}  // namespace guestmem
