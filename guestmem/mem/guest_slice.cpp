// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/guest_slice.hpp"

namespace guestmem {

AccessResult<Piece> GuestSlice::find_piece(GuestAddress address, Access access) {
    const std::uint64_t offset = address.value() - base_.value();
    if (offset >= size_bytes_) return AccessError{AccessReason::out_of_range, access, address.value(), 0};
    if (access == Access::write && !is_writable_)
        return AccessError{AccessReason::read_only, access, address.value(), 0};
    return Piece{.host = host_ + offset,
                 .size_bytes = size_bytes_ - offset,
                 .guest = address,
                 .tracker = tracker_,
                 .offset = tracker_offset_ + offset};
}

std::shared_ptr<const Region> GuestSlice::find_region(GuestAddress address) {
    return map_->find_region(address);
}

AccessResult<GuestSlice*> CachedSlice::find(const MapReader& reader) {
    generation_ = 0;
    const MemoryMap& map = reader.held_map();
    const Run run = GM_TRY(map.find_run(range_.base(), Access::read));
    if (run.size_bytes < range_.size_bytes()) {
        GM_TRY(MapView{map}.check_range(range_.base(), range_.size_bytes(), Access::read));
        return AccessError{AccessReason::crosses_border, Access::read, range_.base().value() + run.size_bytes,
                           0};
    }
    slice_.base_ = range_.base();
    slice_.size_bytes_ = range_.size_bytes();
    const bool is_congruent = ((reinterpret_cast<std::uintptr_t>(run.host) - range_.base().value()) & 7) == 0;
    slice_.room_ = is_congruent && slice_.size_bytes_ >= 8 ? slice_.size_bytes_ - 7 : 0;
    slice_.host_ = run.host;
    slice_.tracker_ = run.tracker;
    slice_.tracker_offset_ = run.offset;
    slice_.is_writable_ = map.find_run(range_.base(), Access::write).has_value();
    slice_.map_ = &map;
    generation_ = reader.held_generation();
    return &slice_;
}

}  // namespace guestmem
