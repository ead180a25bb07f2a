// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>

#include "guestmem/mem/live_map.hpp"
#include "guestmem/mem/range.hpp"
#include "guestmem/mem/typed_access.hpp"

/// A piece of guest memory in one region, looked up once and then reached without a lookup: for rings.
///
/// Concepts: the three parts of a virtqueue are read and written with every request and never move while the map is
/// the same. A CachedSlice keeps where its range is, and looks again when its reader holds another map.
/// Contract: a GuestSlice reaches its range and nothing else (AccessReason::out_of_range), by guest addresses. What
/// slice() gave is valid as long as the map that the reader held then: until its next memory(), pin() or park().
/// Threads: one at a time, the reader's.
/// Cost: slice() compares two numbers while the map is the same; an access has one comparison for its bounds.
/// Example (examples/live_map.cpp):
///     CachedSlice avail{GuestRange::create(GuestAddress{0x2000}, 518).value()};
///     MapPin memory = reader.pin();
///     GuestSlice* ring = GM_TRY(avail.slice(reader));
///     const std::uint16_t head = GM_TRY(ring->load<std::uint16_t>(ring->at(2), std::memory_order_acquire));

namespace guestmem {

class GuestSlice final : public TypedAccess<GuestSlice, GuestPhysicalSpace> {
public:
    using Spot = detail::GuestSpot;

    /// The guest address `offset` bytes into the slice. An offset past its end is refused by whatever it is given to.
    [[nodiscard]] GuestAddress at(std::uint64_t offset) const {
        // Past 2^64 it lands below the slice; the last address of all may belong to it.
        return base_.overflowing_add(offset).address;
    }
    [[nodiscard]] std::uint64_t size_bytes() const { return size_bytes_; }

private:
    friend class TypedAccess<GuestSlice, GuestPhysicalSpace>;
    friend class CachedSlice;
    GuestSlice() = default;

    [[nodiscard]] AccessResult<Piece> find_piece(GuestAddress address, Access access) override;
    [[nodiscard]] std::shared_ptr<const Region> find_region(GuestAddress address) override;

    [[nodiscard, gnu::always_inline]] bool find_readable(std::uint64_t address, std::uint64_t count,
                                                         Spot& spot) {
        const std::uint64_t offset = address - base_.value();
        if (!detail::fits(offset, count, room_)) [[unlikely]]
            return false;
        spot = {host_ + offset, tracker_, tracker_offset_ + offset};
        return true;
    }
    [[nodiscard, gnu::always_inline]] bool find_writable(std::uint64_t address, std::uint64_t count,
                                                         Spot& spot) {
        return find_readable(address, count, spot) && is_writable_;
    }
    [[nodiscard]] static Spot to_spot(const Piece& piece) {
        return {piece.host, piece.tracker, piece.offset};
    }

    GuestAddress base_;
    std::uint64_t size_bytes_ = 0;
    std::uint64_t room_ = 0;  ///< as LookupEntry::room
    std::byte* host_ = nullptr;
    DirtyTracker* tracker_ = nullptr;
    std::uint64_t tracker_offset_ = 0;
    bool is_writable_ = false;
    const MemoryMap* map_ = nullptr;
};

class CachedSlice {
public:
    explicit CachedSlice(const GuestRange& range) : range_(range) {}

    /// The slice in the map that `reader` holds (after its memory() or pin()); an error when the range is not in one
    /// region of memory there.
    [[nodiscard, gnu::always_inline]] AccessResult<GuestSlice*> slice(const MapReader& reader) {
        if (reader.held_generation() != generation_ || generation_ == 0) [[unlikely]]
            return find(reader);
        return &slice_;
    }

    [[nodiscard]] const GuestRange& range() const { return range_; }

private:
    [[nodiscard]] AccessResult<GuestSlice*> find(const MapReader& reader);

    GuestRange range_;
    std::uint64_t generation_ = 0;  ///< of the map that slice_ was found in; 0: none
    GuestSlice slice_;
};

}  // namespace guestmem
