// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "guestmem/mem/access_error.hpp"
#include "guestmem/mem/dirty_tracker.hpp"
#include "guestmem/mem/memory_map.hpp"
#include "guestmem/mem/range.hpp"

/// Bytes of guest memory: read, write, fill, copy, compare, strings, across the borders of regions.
///
/// Concepts: a view (MapView, GuestMemory, TranslatedMemory) knows how an address becomes host bytes; this is what all
/// views can do with it. TypedAccess adds objects and atomic operations.
/// Contract: "some" verbs do as much as they can up to the first byte that refuses, and fail only when that is the
/// first byte of all. The other verbs do all or give an error; they ask before they write, so a hole, a read-only
/// region or a device leaves the memory as it was. Only a page that the host has lost (AccessReason::fault) can end
/// them half way; the error says how many bytes were done. Size 0 is good at any address.
/// What was written is marked dirty after it was written.
/// A copy of at most 64 bytes accesses each aligned 8, 4 or 2 bytes of guest memory once and whole, where guest and
/// host addresses agree modulo 8, as they do in regions of whole pages; of a longer copy any part may be of another
/// moment, and nothing is said about the order.
/// Threads: as the view says. Guests and other threads may access the same bytes at any time.
/// Cost: about 3 ns for each region that is crossed, and the copy.
/// Known holes: the fault guard is for guest memory only; a bad pointer to the caller's own buffer ends the program.

namespace guestmem {

/// Host bytes in a row behind an address of a view, and who wants to know what was written there. For views.
struct Piece {
    std::byte* host = nullptr;
    std::uint64_t size_bytes = 0;
    GuestAddress guest;
    DirtyTracker* tracker = nullptr;
    std::uint64_t offset = 0;
    DirtyTracker* io_tracker = nullptr;  ///< the second log, by IOVA, of a view that translates
    std::uint64_t io_offset = 0;

    /// `count` bytes, `skip` bytes from the beginning, have been written.
    void mark_written(std::uint64_t skip, std::uint64_t count) const {
        tracker->mark_written(offset + skip, count);
        if (io_tracker != nullptr) io_tracker->mark_written(io_offset + skip, count);
    }
};

/// A piece to keep: its bytes stay mapped and its logs alive while this does.
struct HeldPiece {
    Piece piece;
    std::shared_ptr<const Region> region;
    std::shared_ptr<const void> io_log;  ///< keeps piece.io_tracker
};

template <typename Space>
class ByteAccess {
public:
    using AddressType = Address<Space>;

    /// As many bytes as there are in a row.
    [[nodiscard]] AccessResult<std::size_t> read_some(AddressType address, std::span<std::byte> to);
    [[nodiscard]] AccessResult<std::size_t> write_some(AddressType address, std::span<const std::byte> from);

    [[nodiscard]] AccessResult<void> read_bytes(AddressType address, std::span<std::byte> to);
    [[nodiscard]] AccessResult<void> write_bytes(AddressType address, std::span<const std::byte> from);

    [[nodiscard]] AccessResult<void> fill(AddressType address, std::byte value, std::uint64_t size_bytes);
    /// Copies inside of guest memory; the ranges may overlap, as those of memmove may.
    [[nodiscard]] AccessResult<void> copy(AddressType to, AddressType from, std::uint64_t size_bytes);
    /// How the guest's bytes compare with `other`, as memcmp does.
    [[nodiscard]] AccessResult<std::strong_ordering> compare(AddressType address,
                                                             std::span<const std::byte> other);
    /// The bytes up to a NUL, which has to come within `max_bytes` bytes; the NUL is not part of the string.
    [[nodiscard]] AccessResult<std::string> read_string(AddressType address, std::size_t max_bytes);

    /// Whether all of it may be accessed; nothing is touched, so a lost page is not seen.
    [[nodiscard]] AccessResult<void> check_range(AddressType address, std::uint64_t size_bytes,
                                                 Access access);

    /// The bytes from `address` on that lie in a row, and their holders. For the guards that give out raw pointers.
    [[nodiscard]] AccessResult<HeldPiece> hold_piece(AddressType address, Access access);

protected:
    ByteAccess() = default;
    ByteAccess(const ByteAccess&) = default;
    ByteAccess& operator=(const ByteAccess&) = default;
    ~ByteAccess() = default;

    /// The bytes from `address` on that lie in a row, in a map that the view has until its next call.
    [[nodiscard]] virtual AccessResult<Piece> find_piece(AddressType address, Access access) = 0;
    /// The region behind a guest physical address that find_piece() has just given.
    [[nodiscard]] virtual std::shared_ptr<const Region> find_region(GuestAddress address) = 0;
    /// What keeps the io_tracker of its pieces.
    [[nodiscard]] virtual std::shared_ptr<const void> io_log() const { return nullptr; }

    /// find_piece() for a verb, which calls leave_piece() when it has touched the piece: a view whose mappings can be
    /// taken away keeps them until then. Bytes of guest physical memory have no such view.
    [[nodiscard]] virtual AccessResult<Piece> enter_piece(AddressType address, Access access) {
        return find_piece(address, access);
    }
    virtual void leave_piece() {}

    /// The byte of a word that could not be stored since the host has lost its page.
    [[nodiscard]] static AccessError refuse_store(AddressType address, std::byte* host,
                                                  std::size_t size_bytes);
    /// Why an atomic access of an aligned `size_bytes` at `address` found no spot.
    [[nodiscard]] AccessError refuse_atomic(AddressType address, std::size_t size_bytes, Access access);

private:
    template <typename Step>
    AccessResult<void> walk(AddressType address, std::uint64_t size_bytes, Access access, Step&& step);
};

extern template class ByteAccess<GuestPhysicalSpace>;
extern template class ByteAccess<IoVirtualSpace>;

}  // namespace guestmem
