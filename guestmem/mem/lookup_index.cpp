// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/lookup_index.hpp"

#include <algorithm>
#include <limits>

#include "guestmem/base/check.hpp"

namespace guestmem {

namespace {

using Ranges = std::span<const GuestRange>;

std::uint64_t first_of(const GuestRange& range) { return range.base().value(); }
std::uint64_t last_of(const GuestRange& range) { return range.last().value(); }

/// Whether no two regions share a cell of 2^shift bytes.
bool has_own_cells(Ranges ranges, std::uint64_t base, unsigned shift) {
    for (std::size_t i = 1; i < ranges.size(); ++i)
        if ((last_of(ranges[i - 1]) - base) >> shift == (first_of(ranges[i]) - base) >> shift) return false;
    return true;
}

/// The first and the last address that have a floating key.
std::uint64_t first_of_key(std::uint64_t key, unsigned key_bits) {
    const std::uint64_t mantissa = (key & ((1U << key_bits) - 1)) + (1U << key_bits);
    const std::uint64_t page = (mantissa << (key >> key_bits)) - (1U << key_bits);
    return page << 12;
}
std::uint64_t last_of_key(std::uint64_t key, unsigned key_bits) {
    // The last key begins 2^key_bits pages below 2^64; what would follow it wraps.
    const std::uint64_t next = first_of_key(key + 1, key_bits);
    return next > first_of_key(key, key_bits) ? next - 1 : std::numeric_limits<std::uint64_t>::max();
}

LookupEntry entry_of(const Region& region) {
    LookupEntry entry;
    entry.base = region.range().base().value();
    if (region.is_memory()) {
        const std::uint64_t size_bytes = region.range().size_bytes();
        entry.host = region.host_base();
        // An aligned guest address has to be an aligned host address; where it is not, the slow way looks closely.
        const bool is_congruent = ((reinterpret_cast<std::uintptr_t>(entry.host) - entry.base) & 7) == 0;
        entry.room = is_congruent && size_bytes >= 8 ? size_bytes - 7 : 0;
        entry.tracker_bits = reinterpret_cast<std::uintptr_t>(&region.dirty());
    }
    if (!region.is_writable()) entry.tracker_bits |= 1;
    return entry;
}

}  // namespace

LookupIndex::LookupIndex(std::span<const std::shared_ptr<const Region>> regions)
    : count_regions_(regions.size()) {
    static_assert(alignof(DirtyTracker) > 1, "the lowest bit of its address says read-only");
    GM_CHECK(regions.size() <= max_regions);
    entries_.reserve(regions.size() + 1);
    // Side by side, since what follows goes over them many times.
    std::vector<GuestRange> ranges;
    ranges.reserve(regions.size());
    for (const auto& region : regions) {
        entries_.push_back(entry_of(*region));
        ranges.push_back(region->range());
    }
    entries_.push_back({.tracker_bits = 1});
    if (choose_linear(ranges)) {
        build_linear(ranges);
    } else {
        build_floating(ranges);
    }
}

bool LookupIndex::choose_linear(Ranges ranges) {
    if (ranges.empty()) return true;
    linear_base_ = first_of(ranges.front());
    const std::uint64_t distance = last_of(ranges.back()) - linear_base_;
    // The largest cells that keep the regions apart make the smallest table.
    for (unsigned shift = 63; (distance >> shift) < max_linear_cells; --shift) {
        if (has_own_cells(ranges, linear_base_, shift)) {
            linear_shift_ = shift;
            return true;
        }
        if (shift == 0) break;
    }
    return false;
}

void LookupIndex::build_linear(Ranges ranges) {
    kind_ = Kind::linear;
    const auto none = static_cast<std::uint16_t>(ranges.size());
    if (!ranges.empty()) count_cells_ = ((last_of(ranges.back()) - linear_base_) >> linear_shift_) + 1;
    cells_.assign(count_cells_ + 1, none);
    for (std::size_t i = 0; i < ranges.size(); ++i) {
        const std::uint64_t first = (first_of(ranges[i]) - linear_base_) >> linear_shift_;
        const std::uint64_t last = (last_of(ranges[i]) - linear_base_) >> linear_shift_;
        for (std::uint64_t cell = first; cell <= last; ++cell) cells_[cell] = static_cast<std::uint16_t>(i);
    }
}

void LookupIndex::build_floating(Ranges ranges) {
    kind_ = Kind::floating;
    count_buckets_ = floating_key(last_of(ranges.back())) + 1;
    buckets_.resize(count_buckets_ + 1);
    // Cell 0 is the answer of all buckets without a region.
    cells_.assign(1, static_cast<std::uint16_t>(ranges.size()));
    std::size_t first = 0;
    for (std::uint64_t key = floating_key(first_of(ranges.front())); key < count_buckets_; ++key) {
        while (first < ranges.size() && floating_key(last_of(ranges[first])) < key) ++first;
        std::size_t count = 0;
        while (first + count < ranges.size() && floating_key(first_of(ranges[first + count])) <= key) ++count;
        if (count != 0) build_bucket(key, ranges, first, count);
    }
    cells_.shrink_to_fit();
}

void LookupIndex::build_bucket(std::uint64_t key, Ranges ranges, std::size_t first, std::size_t count) {
    Bucket& bucket = buckets_[key];
    bucket.first_cell = static_cast<std::uint32_t>(cells_.size());
    if (count == 1) {
        // All addresses of the bucket lead to one cell: whatever is outside of the region fails the comparison.
        if (cells_.size() > 1 && cells_.back() == first) {
            --bucket.first_cell;
        } else {
            cells_.push_back(static_cast<std::uint16_t>(first));
        }
        return;
    }
    // A region may reach into this bucket from below, or out of it at the top.
    const std::uint64_t lowest = std::max(first_of(ranges[first]), first_of_key(key, key_bits));
    const std::uint64_t highest = std::min(last_of(ranges[first + count - 1]), last_of_key(key, key_bits));
    const std::size_t left = max_floating_cells - std::min(cells_.size(), max_floating_cells);
    const std::size_t most = std::min({std::bit_ceil(count * 16), max_bucket_cells, left});
    // Two cells at least: a bucket may have the middle of the space in it, which no shift takes away.
    const std::size_t limit = std::max<std::size_t>(std::bit_floor(most), 2);
    unsigned shift = 0;
    while ((highest >> shift) - (lowest >> shift) >= limit) ++shift;
    const std::size_t count_cells = std::bit_ceil((highest >> shift) - (lowest >> shift) + 1);
    bucket.mask = static_cast<std::uint16_t>(count_cells - 1);
    bucket.shift = static_cast<std::uint8_t>(shift);
    const auto none = static_cast<std::uint16_t>(ranges.size());
    cells_.resize(cells_.size() + count_cells, none);
    for (std::size_t i = first; i < first + count; ++i) {
        const std::uint64_t begin = std::max(first_of(ranges[i]), lowest) >> shift;
        // By their count: the last cell may have the number 2^64 - 1.
        const std::uint64_t count_own = (std::min(last_of(ranges[i]), highest) >> shift) - begin + 1;
        for (std::uint64_t cell = 0; cell < count_own; ++cell) {
            std::uint16_t& place = cells_[bucket.first_cell + ((begin + cell) & bucket.mask)];
            if (place != none) bucket.is_crowded = 1;
            place = static_cast<std::uint16_t>(i);
        }
    }
}

std::size_t LookupIndex::find_at_or_below(std::uint64_t address) const {
    const auto end = entries_.begin() + static_cast<std::ptrdiff_t>(count_regions_);
    const auto above =
        std::upper_bound(entries_.begin(), end, address,
                         [](std::uint64_t value, const LookupEntry& entry) { return value < entry.base; });
    if (above == entries_.begin()) return count_regions_;
    return static_cast<std::size_t>(above - entries_.begin()) - 1;
}

const LookupEntry& LookupIndex::search(std::uint64_t address) const {
    // Halving without branches: which half is taken is as random as the address.
    const LookupEntry* at = entries_.data();
    for (std::size_t count = count_regions_; count > 1;) {
        const std::size_t half = count / 2;
        at += at[half].base <= address ? half : 0;
        count -= half;
    }
    return *at;
}

std::string_view LookupIndex::kind() const { return kind_ == Kind::linear ? "linear" : "floating"; }

std::size_t LookupIndex::index_bytes() const {
    return cells_.size() * sizeof(std::uint16_t) + buckets_.size() * sizeof(Bucket);
}

}  // namespace guestmem
