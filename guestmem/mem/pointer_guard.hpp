// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "guestmem/mem/access.hpp"

/// Raw pointers into guest memory, each with a name for why it exists.
///
/// Concepts: some consumers need host bytes: a decompressor, a kernel interface, a packet copied by hardware. They
/// hold a ReadPointer or a WritePointer. The region's bytes stay mapped while it lives, and whoever waits for the
/// region to be unused (LiveMap::wait_until_unused) reads its name.
/// Contract: the bytes lie in one region. A WritePointer marks all of them dirty when it goes, unless mark_written()
/// said which were written. Guests write to the same bytes at any time: nothing that was read twice is the same
/// twice, and the fault guard does not see accesses through a pointer: a file that was cut short ends the program.
/// Threads: one at a time.
/// Cost: a mutex and an entry in the region's list; not for a hot path.
/// Known holes: a pointer that was taken through a TranslatedMemory is not revoked when the IOMMU's mapping is; its
/// device has to drop it first, as real devices invalidate their own caches.
/// Example (examples/guest_memory.cpp):
///     const ReadPointer image = GM_TRY(ReadPointer::create(memory, address, size, "kernel header"));
///     parse(image.bytes());

namespace guestmem {

/// What a piece needs while somebody has its pointer, with an entry in its region's list of holders.
class PieceHold {
public:
    PieceHold(const HeldPiece& held, std::string why)
        : region_(held.region), io_log_(held.io_log), ticket_(region_->add_holder(std::move(why))) {}
    PieceHold(PieceHold&& other) noexcept
        : region_(std::move(other.region_)), io_log_(std::move(other.io_log_)), ticket_(other.ticket_) {}
    PieceHold& operator=(PieceHold&& other) noexcept {
        const PieceHold old{std::move(*this)};
        region_ = std::move(other.region_);
        io_log_ = std::move(other.io_log_);
        ticket_ = other.ticket_;
        return *this;
    }
    PieceHold(const PieceHold&) = delete;
    PieceHold& operator=(const PieceHold&) = delete;
    ~PieceHold() {
        if (region_) region_->remove_holder(ticket_);
    }

    [[nodiscard]] const Region& region() const { return *region_; }
    /// Whether another piece is held by this, too.
    [[nodiscard]] bool covers(const HeldPiece& other) const {
        return region_ == other.region && (!other.io_log || io_log_ == other.io_log);
    }

private:
    std::shared_ptr<const Region> region_;
    std::shared_ptr<const void> io_log_;
    std::uint64_t ticket_;
};

template <Access access>
class PointerGuard {
    using Byte = std::conditional_t<access == Access::read, const std::byte, std::byte>;

public:
    /// `size_bytes` from `address` on, through any view.
    template <typename Space>
    [[nodiscard]] static AccessResult<PointerGuard> create(ByteAccess<Space>& view, Address<Space> address,
                                                           std::uint64_t size_bytes, std::string why) {
        if (size_bytes != 0 && !address.checked_add(size_bytes - 1))
            return AccessError{AccessReason::overflow, access, address.value(), 0};
        const HeldPiece held = GM_TRY(view.hold_piece(address, access));
        if (held.piece.size_bytes < size_bytes) {
            GM_TRY(view.check_range(address, size_bytes, access));
            return AccessError{AccessReason::crosses_border, access, address.value() + held.piece.size_bytes,
                               0};
        }
        return PointerGuard{held.piece, size_bytes, PieceHold{held, std::move(why)}};
    }

    PointerGuard(PointerGuard&& other) noexcept
        : piece_(other.piece_),
          size_bytes_(std::exchange(other.size_bytes_, 0)),
          is_marked_(other.is_marked_),
          hold_(std::move(other.hold_)) {}
    PointerGuard& operator=(PointerGuard&& other) noexcept {
        const PointerGuard old{std::move(*this)};  // marks and lets go here, not when `other` does
        piece_ = other.piece_;
        size_bytes_ = std::exchange(other.size_bytes_, 0);
        is_marked_ = other.is_marked_;
        hold_ = std::move(other.hold_);
        return *this;
    }
    PointerGuard(const PointerGuard&) = delete;
    PointerGuard& operator=(const PointerGuard&) = delete;
    ~PointerGuard() {
        if constexpr (access == Access::write)
            if (!is_marked_ && size_bytes_ != 0) piece_.mark_written(0, size_bytes_);
    }

    [[nodiscard]] std::span<Byte> bytes() const { return {piece_.host, size_bytes_}; }
    [[nodiscard]] const Region& region() const { return hold_.region(); }

    /// `count` bytes at `offset` have been written; what is not named so is not marked.
    void mark_written(std::uint64_t offset, std::uint64_t count)
        requires(access == Access::write)
    {
        is_marked_ = true;
        if (offset < size_bytes_) piece_.mark_written(offset, std::min(count, size_bytes_ - offset));
    }

private:
    PointerGuard(const Piece& piece, std::uint64_t size_bytes, PieceHold hold)
        : piece_(piece), size_bytes_(size_bytes), hold_(std::move(hold)) {}

    Piece piece_;
    std::uint64_t size_bytes_;
    bool is_marked_ = false;
    PieceHold hold_;
};

using ReadPointer = PointerGuard<Access::read>;
using WritePointer = PointerGuard<Access::write>;

}  // namespace guestmem
