// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "guestmem/mem/dirty_tracker.hpp"
#include "guestmem/mem/region.hpp"

/// From a guest address to its region in constant time, whatever the number of regions.
///
/// Concepts: all regions stand in one table, ordered by address, 32 bytes each: a LookupEntry has what an access of
/// up to 8 bytes needs. A second table of 16-bit numbers, the cells, says for a piece of the address space which
/// entry to look at. How an address becomes a cell is chosen when the map is frozen:
///   linear    (address - base) >> shift, when some shift gives each region cells of its own in at most
///             max_linear_cells cells: adjacent memory, the usual layouts of machines;
///   floating  exponent and 7 bits of the page number, which cover all of 2^64 in 6 thousand buckets; a bucket with
///             several regions has cells of its own: sparse and clustered layouts.
/// A cell with more than one region makes the lookup search the table by halving.
/// Contract: find() gives the entry whose room holds the address, or one that does not hold it: the caller compares.
/// Limits: max_regions regions; cells and buckets take at most 256 KiB.
/// Threads: any once built.
/// Cost: 2 dependent loads (linear) or 3 (floating) from tables of some KiB. Building is O(regions + cells).

namespace guestmem {

/// What the fast path needs of a region.
struct LookupEntry {
    std::uint64_t base = 0;
    /// How many offsets there are at which 8 bytes fit: size - 7. 0 for what cannot be accessed so.
    std::uint64_t room = 0;
    std::byte* host = nullptr;
    /// The tracker; the lowest bit is set when the region must not be written.
    std::uintptr_t tracker_bits = 0;

    [[nodiscard]] bool is_writable() const { return (tracker_bits & 1) == 0; }
    [[nodiscard]] DirtyTracker* tracker() const {
        // NOLINTNEXTLINE(performance-no-int-to-ptr): the pointer shares its word with a flag
        return reinterpret_cast<DirtyTracker*>(tracker_bits & ~std::uintptr_t{1});
    }
};
static_assert(sizeof(LookupEntry) == 32);

class LookupIndex {
public:
    static constexpr std::size_t max_regions = 32768;
    static constexpr std::size_t max_linear_cells = 16384;
    static constexpr std::size_t max_bucket_cells = 4096;
    static constexpr std::size_t max_floating_cells = 65536;

    /// The regions in the order of their addresses, without overlap, at most max_regions.
    explicit LookupIndex(std::span<const std::shared_ptr<const Region>> regions);

    /// The entry to compare with; never null.
    [[nodiscard, gnu::always_inline]] const LookupEntry& find(std::uint64_t address) const {
        if (kind_ == Kind::linear) [[likely]] {
            const std::uint64_t cell = (address - linear_base_) >> linear_shift_;
            return entries_[cells_[cell < count_cells_ ? cell : count_cells_]];
        }
        return find_floating(address);
    }

    /// The number of the last region that begins at or below the address; count() when there is none.
    [[nodiscard]] std::size_t find_at_or_below(std::uint64_t address) const;

    [[nodiscard]] std::size_t count() const { return count_regions_; }
    /// "linear" or "floating".
    [[nodiscard]] std::string_view kind() const;
    /// The memory of cells and buckets, without the table of regions.
    [[nodiscard]] std::size_t index_bytes() const;

private:
    enum class Kind : std::uint8_t { linear, floating };

    /// The cell of an address is first_cell + ((address >> shift) & mask): as many cells in a row as the regions of the
    /// bucket reach over, in a ring. Addresses that lie in no region may meet any cell of it.
    struct Bucket {
        std::uint32_t first_cell = 0;
        std::uint16_t mask = 0;
        std::uint8_t shift = 0;
        std::uint8_t is_crowded = 0;  ///< some cell has several regions
    };
    static_assert(sizeof(Bucket) == 8);

    static constexpr unsigned key_bits = 7;

    /// Exponent and key_bits bits of the page number, as the double of that number has them.
    [[nodiscard, gnu::always_inline]] static std::uint64_t floating_key(std::uint64_t address) {
        const auto page = static_cast<double>(static_cast<std::int64_t>((address >> 12) + (1U << key_bits)));
        constexpr std::uint64_t lowest =
            std::bit_cast<std::uint64_t>(static_cast<double>(1U << key_bits)) >> (52 - key_bits);
        return (std::bit_cast<std::uint64_t>(page) >> (52 - key_bits)) - lowest;
    }

    [[nodiscard, gnu::always_inline]] const LookupEntry& find_floating(std::uint64_t address) const {
        const std::uint64_t key = floating_key(address);
        const Bucket& bucket = buckets_[key < count_buckets_ ? key : count_buckets_];
        const std::uint64_t cell = bucket.first_cell + ((address >> bucket.shift) & bucket.mask);
        const LookupEntry& entry = entries_[cells_[cell]];
        if (address - entry.base < entry.room || bucket.is_crowded == 0) [[likely]]
            return entry;
        return search(address);
    }
    [[nodiscard]] const LookupEntry& search(std::uint64_t address) const;

    [[nodiscard]] bool choose_linear(std::span<const GuestRange> ranges);
    void build_linear(std::span<const GuestRange> ranges);
    void build_floating(std::span<const GuestRange> ranges);
    void build_bucket(std::uint64_t key, std::span<const GuestRange> ranges, std::size_t first,
                      std::size_t count);

    Kind kind_ = Kind::linear;
    unsigned linear_shift_ = 0;
    std::uint64_t linear_base_ = 0;
    std::uint64_t count_cells_ = 0;
    std::uint64_t count_buckets_ = 0;
    std::size_t count_regions_ = 0;
    std::vector<std::uint16_t> cells_;
    std::vector<LookupEntry> entries_;  ///< one more than regions: the last is empty
    std::vector<Bucket> buckets_;
};

}  // namespace guestmem
