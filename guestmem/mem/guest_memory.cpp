// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/guest_memory.hpp"

namespace guestmem {

namespace {

AccessResult<Piece> piece_at(const MemoryMap& map, GuestAddress address, Access access) {
    const AccessResult<Run> run = map.find_run(address, access);
    if (!run) return run.error();
    return Piece{.host = run->host,
                 .size_bytes = run->size_bytes,
                 .guest = address,
                 .tracker = run->tracker,
                 .offset = run->offset};
}

}  // namespace

AccessResult<Piece> MapView::find_piece(GuestAddress address, Access access) {
    return piece_at(*map_, address, access);
}

std::shared_ptr<const Region> MapView::find_region(GuestAddress address) {
    return map_->find_region(address);
}

AccessResult<Piece> GuestMemory::find_piece(GuestAddress address, Access access) {
    return piece_at(*map_, address, access);
}

std::shared_ptr<const Region> GuestMemory::find_region(GuestAddress address) {
    return map_->find_region(address);
}

bool GuestMemory::remember(std::uint64_t address) {
    const LookupEntry& entry = map_->index().find(address);
    missed_ = &entry;
    if (address - entry.base >= entry.room) return false;
    hit_ = {entry.base, entry.room, entry.is_writable() ? entry.room : 0, entry.host, entry.tracker()};
    return true;
}

}  // namespace guestmem
