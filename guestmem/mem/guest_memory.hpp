// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "guestmem/mem/border_access.hpp"
#include "guestmem/mem/memory_map.hpp"
#include "guestmem/mem/typed_access.hpp"

/// The two views of a map: GuestMemory remembers where it was, MapView remembers nothing.
///
/// Concepts: devices stay in a region for many accesses, so a GuestMemory keeps its last hit and compares with that
/// first; each reader owns one. A MapView looks every address up in the index: for accesses that jump, and for code
/// that has no place to keep a handle.
/// Contract: both read and write the map they were made from, and no other: a map never changes. A LiveMap's
/// MapReader hands out a GuestMemory that follows the current map.
/// Threads: GuestMemory one at a time; MapView any.
/// Lifetime: a GuestMemory holds its map. A MapView does not: the map has to outlive it.
/// Cost: GuestMemory about 0.5 ns over a raw access within a region, a lookup more in another; MapView a lookup each
/// time, 1 to 6 ns.
/// Example (examples/guest_memory.cpp):
///     GuestMemory memory{map};
///     const std::uint16_t index = GM_TRY(memory.read_le<std::uint16_t>(GuestAddress{0x1002}));

namespace guestmem {

namespace detail {

/// Where an access of a view without translation lands.
struct GuestSpot {
    std::byte* host;
    DirtyTracker* tracker;
    std::uint64_t offset;

    [[gnu::always_inline]] void mark_written(std::uint64_t count) const {
        tracker->mark_written(offset, count);
    }
};

/// Whether `count` bytes fit at `offset` of what has that room (LookupEntry::room).
[[nodiscard, gnu::always_inline]] inline bool fits(std::uint64_t offset, std::uint64_t count,
                                                   std::uint64_t room) {
    return offset < room && (count <= 8 || count - 7 <= room - offset);
}

}  // namespace detail

class MapView final : public TypedAccess<MapView, GuestPhysicalSpace> {
public:
    using Spot = detail::GuestSpot;

    explicit MapView(const MemoryMap& map) : map_(&map) {}

    [[nodiscard]] const MemoryMap& map() const { return *map_; }

private:
    friend class TypedAccess<MapView, GuestPhysicalSpace>;

    [[nodiscard]] AccessResult<Piece> find_piece(GuestAddress address, Access access) override;
    [[nodiscard]] std::shared_ptr<const Region> find_region(GuestAddress address) override;

    [[nodiscard, gnu::always_inline]] bool find_readable(std::uint64_t address, std::uint64_t count,
                                                         Spot& spot) {
        const LookupEntry& entry = map_->index().find(address);
        const std::uint64_t offset = address - entry.base;
        if (!detail::fits(offset, count, entry.room)) [[unlikely]]
            return false;
        spot = {entry.host + offset, entry.tracker(), offset};
        return true;
    }
    [[nodiscard, gnu::always_inline]] bool find_writable(std::uint64_t address, std::uint64_t count,
                                                         Spot& spot) {
        const LookupEntry& entry = map_->index().find(address);
        const std::uint64_t offset = address - entry.base;
        if (!detail::fits(offset, count, entry.room) || !entry.is_writable()) [[unlikely]]
            return false;
        // A writable entry's bits are the tracker's address itself.
        spot = {entry.host + offset, reinterpret_cast<DirtyTracker*>(entry.tracker_bits), offset};
        return true;
    }
    [[nodiscard]] bool read_across(std::uint64_t address, std::size_t size_bytes, std::uint64_t& word) {
        return read_across_border(*map_, map_->index().find(address), address, size_bytes, word);
    }
    [[nodiscard]] bool write_across(std::uint64_t address, std::size_t size_bytes, std::uint64_t word) {
        return write_across_border(*map_, map_->index().find(address), address, size_bytes, word);
    }
    [[nodiscard]] static Spot to_spot(const Piece& piece) {
        return {piece.host, piece.tracker, piece.offset};
    }

    const MemoryMap* map_;
};

class GuestMemory final : public TypedAccess<GuestMemory, GuestPhysicalSpace> {
public:
    using Spot = detail::GuestSpot;

    explicit GuestMemory(std::shared_ptr<const MemoryMap> map) : map_(map.get()), owner_(std::move(map)) {}
    GuestMemory(const GuestMemory&) = delete;
    GuestMemory& operator=(const GuestMemory&) = delete;
    ~GuestMemory() = default;

    [[nodiscard]] const MemoryMap& map() const { return *map_; }

private:
    friend class TypedAccess<GuestMemory, GuestPhysicalSpace>;
    friend class MapReader;

    [[nodiscard]] AccessResult<Piece> find_piece(GuestAddress address, Access access) override;
    [[nodiscard]] std::shared_ptr<const Region> find_region(GuestAddress address) override;

    /// For a MapReader, which sees to it that the map lives.
    GuestMemory() = default;
    GuestMemory(GuestMemory&&) = default;
    GuestMemory& operator=(GuestMemory&&) = default;
    void follow(const MemoryMap* map) {
        map_ = map;
        hit_ = {};
    }

    struct Hit {
        std::uint64_t base = 0;
        std::uint64_t room = 0;
        std::uint64_t writable_room = 0;  ///< room, or 0 when it must not be written
        std::byte* host = nullptr;
        DirtyTracker* tracker = nullptr;
    };

    [[nodiscard, gnu::always_inline]] bool find_readable(std::uint64_t address, std::uint64_t count,
                                                         Spot& spot) {
        std::uint64_t offset = address - hit_.base;
        if (!detail::fits(offset, count, hit_.room)) [[unlikely]] {
            if (!remember(address)) return false;
            offset = address - hit_.base;
            if (!detail::fits(offset, count, hit_.room)) return false;
        }
        spot = {hit_.host + offset, hit_.tracker, offset};
        return true;
    }
    [[nodiscard, gnu::always_inline]] bool find_writable(std::uint64_t address, std::uint64_t count,
                                                         Spot& spot) {
        std::uint64_t offset = address - hit_.base;
        if (!detail::fits(offset, count, hit_.writable_room)) [[unlikely]] {
            if (!remember(address)) return false;
            offset = address - hit_.base;
            if (!detail::fits(offset, count, hit_.writable_room)) return false;
        }
        spot = {hit_.host + offset, hit_.tracker, offset};
        return true;
    }
    [[nodiscard]] bool read_across(std::uint64_t address, std::size_t size_bytes, std::uint64_t& word) {
        return read_across_border(*map_, *missed_, address, size_bytes, word);
    }
    [[nodiscard]] bool write_across(std::uint64_t address, std::size_t size_bytes, std::uint64_t word) {
        return write_across_border(*map_, *missed_, address, size_bytes, word);
    }
    [[nodiscard]] static Spot to_spot(const Piece& piece) {
        return {piece.host, piece.tracker, piece.offset};
    }

    /// Looks the address up and keeps what was found; false when no 8 bytes fit there.
    [[gnu::noinline]] bool remember(std::uint64_t address);

    const MemoryMap* map_ = nullptr;
    Hit hit_;
    const LookupEntry* missed_ = nullptr;  ///< what the index gave when remember() failed
    std::shared_ptr<const MemoryMap> owner_;
};

}  // namespace guestmem
