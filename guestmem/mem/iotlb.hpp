// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/translator.hpp"

/// The translations that were asked for lately: a bounded cache of I/O virtual ranges.
///
/// Concepts: an entry is a Translation of any size, at any byte. Entries do not overlap: a translation that is inserted
/// takes the place of what was there, and what it covers in part is trimmed. Entries that continue each other with
/// the same permissions become one.
/// Contract: lookup() never says what was not inserted, was invalidated, or was replaced. It may have forgotten: when
/// the cache is full, something goes. Trimming the middle of an entry makes two of it and may need room as well.
/// A translation without permissions is not kept; it only removes what it covers.
/// Eviction: second chance (clock). A hand moves over the entries in the order of their addresses; an entry that was
/// looked up since the hand last passed is passed once more, the first one that was not goes.
/// Threads: one at a time. IoSpace (translated_memory.hpp) has the lock.
/// Limits: at most `capacity` entries, from 1 to max_iotlb_capacity; about 100 bytes each.
/// Cost: lookup, insert and invalidate O(log entries), 20 to 100 ns, plus the entries that go.
/// Example:
///     Iotlb iotlb = GM_TRY(Iotlb::create({.capacity = 512}));
///     iotlb.insert(*Translation::create(*IoRange::create(IoAddress{0x1000}, 0x1000), ring, Permissions::read_write));
///     const std::optional<Translation> found = iotlb.lookup(IoAddress{0x1008});

namespace guestmem {

/// As many as Linux's vhost keeps for a device (max_iotlb_entries).
inline constexpr std::size_t default_iotlb_capacity = 2048;
inline constexpr std::size_t max_iotlb_capacity = 65536;

struct IotlbOptions {
    std::size_t capacity = default_iotlb_capacity;
};

/// Since the beginning.
struct IotlbCounts {
    std::uint64_t hits = 0;
    std::uint64_t misses = 0;
    std::uint64_t evictions = 0;
    friend constexpr bool operator==(const IotlbCounts&, const IotlbCounts&) = default;
};

class Iotlb {
public:
    [[nodiscard]] static Result<Iotlb> create(const IotlbOptions& options);

    void insert(const Translation& translation);
    /// The whole entry that has the address.
    [[nodiscard]] std::optional<Translation> lookup(IoAddress address);

    /// Afterwards nothing is known about the range.
    void invalidate(const IoRange& range);
    void invalidate_all() { entries_.clear(); }

    [[nodiscard]] std::size_t count() const { return entries_.size(); }
    [[nodiscard]] std::size_t capacity() const { return capacity_; }
    [[nodiscard]] IotlbCounts counts() const { return counts_; }
    /// In the order of their addresses; for people and tests.
    [[nodiscard]] std::vector<Translation> entries() const;

private:
    struct Entry {
        Translation translation;
        bool is_used = false;  ///< looked up since the hand passed
    };
    using Entries = std::map<IoAddress, Entry>;

    explicit Iotlb(std::size_t capacity) : capacity_(capacity) {}
    /// Puts an entry where there is none.
    void put(const Entry& entry);
    void evict_one();
    /// Takes the neighbor that `entry` can be joined with out of the cache and into the entry.
    void absorb(Entries::iterator neighbor, Entry& entry);

    std::size_t capacity_;
    Entries entries_;  ///< by their first addresses
    IoAddress hand_;   ///< the clock goes on at the first entry from here on
    IotlbCounts counts_;
};

}  // namespace guestmem
