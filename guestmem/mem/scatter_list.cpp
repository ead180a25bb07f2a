// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/scatter_list.hpp"

#include <algorithm>
#include <iterator>

namespace guestmem {

template <typename Space>
AccessResult<void> ScatterList::add(ByteAccess<Space>& view, Address<Space> address,
                                    std::uint64_t size_bytes) {
    if (size_bytes == 0) return {};
    if (!address.checked_add(size_bytes - 1))
        return AccessError{AccessReason::overflow, access_, address.value(), 0};
    std::vector<Piece> found;
    std::vector<PieceHold> holds;
    for (std::uint64_t done = 0; done < size_bytes;) {
        const std::uint64_t at = address.value() + done;
        const AccessResult<HeldPiece> held = view.hold_piece(Address<Space>{at}, access_);
        if (!held) return held.error();
        if (pieces_.size() + found.size() == max_io_slices)
            return AccessError{AccessReason::list_full, access_, at, 0};
        // Before the next piece is looked for: the map may have changed then, and somebody waits for this region.
        const std::vector<PieceHold>& last = holds.empty() ? holds_ : holds;
        if (last.empty() || !last.back().covers(*held)) holds.emplace_back(*held, why_);
        found.push_back(held->piece);
        found.back().size_bytes = std::min(held->piece.size_bytes, size_bytes - done);
        done += found.back().size_bytes;
    }
    std::ranges::move(holds, std::back_inserter(holds_));
    for (const Piece& piece : found) {
        pieces_.push_back(piece);
        const bool is_next =
            !slices_.empty() && slices_.back().data + slices_.back().size_bytes == piece.host;
        if (is_next) {
            slices_.back().size_bytes += piece.size_bytes;
        } else {
            slices_.push_back({piece.host, piece.size_bytes});
        }
    }
    size_bytes_ += size_bytes;
    is_marked_ = false;  // of these bytes nobody has said anything
    return {};
}

const ::iovec* ScatterList::iovecs() const {
    // IoSlice has the layout of iovec; scatter_io.cpp asserts it.
    return reinterpret_cast<const ::iovec*>(slices_.data());
}

void ScatterList::mark_written(std::uint64_t count) {
    is_marked_ = true;
    for (const Piece& piece : pieces_) {
        if (count == 0) return;
        const std::uint64_t part = std::min(count, piece.size_bytes);
        piece.mark_written(0, part);
        count -= part;
    }
}

void ScatterList::clear() {
    if (access_ == Access::write && !is_marked_) mark_written(size_bytes_);
    slices_.clear();
    pieces_.clear();
    holds_.clear();
    size_bytes_ = 0;
    is_marked_ = false;
}

template AccessResult<void> ScatterList::add(ByteAccess<GuestPhysicalSpace>&, GuestAddress, std::uint64_t);
template AccessResult<void> ScatterList::add(ByteAccess<IoVirtualSpace>&, IoAddress, std::uint64_t);

}  // namespace guestmem
