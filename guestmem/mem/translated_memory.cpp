// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/translated_memory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "guestmem/mem/io_space_state.hpp"

namespace guestmem {

TranslatedMemory::TranslatedMemory(std::shared_ptr<detail::IoSpaceState> state, std::string name,
                                   MapReader reader)
    : generation_(&state->generation),
      needs_fence_(!state->has_membarrier),
      reader_(std::move(reader)),
      state_(std::move(state)) {
    state_->slots.emplace(&slot_, std::move(name));
}

TranslatedMemory::~TranslatedMemory() {
    const std::scoped_lock lock{state_->mutex};
    state_->slots.erase(&slot_);
}

void TranslatedMemory::follow_map() {
    static_cast<void>(reader_.memory());
    if (reader_.held_generation() == map_generation_) return;
    map_generation_ = reader_.held_generation();
    hits_.fill({});
    hit_ = {};
}

bool TranslatedMemory::enter() {
    // As enter_quickly().
    slot_.inside.store(hit_.generation, std::memory_order_release);
    std::atomic_signal_fence(std::memory_order_seq_cst);
    if (needs_fence_) std::atomic_thread_fence(std::memory_order_seq_cst);
    if (generation_->load(std::memory_order_acquire) != hit_.generation) return false;
    follow_map();
    return hit_.generation != 0;
}

bool TranslatedMemory::recall(IoAddress address, Access access) {
    const std::uint64_t generation = generation_->load(std::memory_order_acquire);
    for (const Hit& hit : hits_) {
        if (hit.generation != generation || !hit.has(address, access)) continue;
        hit_ = hit;
        return true;
    }
    return false;
}

AccessResult<void> TranslatedMemory::aim(IoAddress address, Access access, Asking asking) {
    detail::FoundTranslation found;
    if (asking == Asking::yes) {
        found = GM_TRY(state_->find_or_ask(address, access, reader_));
        if (!found.translation) return {};
    } else {
        found = state_->find(address);
        if (!found.translation || !allows(found.translation->permissions(), access))
            return AccessError{AccessReason::untranslated, access, address.value(), 0};
    }
    return place(*found.translation, found.generation, address, access);
}

AccessResult<void> TranslatedMemory::place(const Translation& translation, std::uint64_t generation,
                                           IoAddress address, Access access) {
    follow_map();
    const MemoryMap& map = reader_.held_map();
    const GuestAddress guest = *translation.guest_address_of(address);
    const AccessResult<Run> run = map.find_run(guest, access);
    if (!run) {
        refused_at_ = guest;
        refusal_ = AccessError{run.error().reason(), access, address.value(), 0};
        return refusal_;
    }
    const std::shared_ptr<const Region> region = map.find_region(guest);
    // How many bytes below the address, and above it, lie in the translation, in the region, and on this side of the
    // window's borders, since marks begin with a hit.
    std::uint64_t below = std::min(address.value() - translation.from().base().value(),
                                   guest.value() - region->range().base().value());
    std::uint64_t above = std::min(translation.from().last().value() - address.value(),
                                   region->range().last().value() - guest.value());
    const std::optional<IoRange>& window = state_->window;
    const bool is_in_window = window && window->contains(address);
    if (is_in_window) {
        // What is above the window, the log leaves out.
        below = std::min(below, address.value() - window->base().value());
    } else if (window && address < window->base()) {
        above = std::min(above, window->base().value() - 1 - address.value());
    } else if (window) {
        below = std::min(below, address.value() - window->last().value() - 1);
    }
    Hit hit;
    hit.base = address.value() - below;
    hit.size_bytes = below + above + 1;
    hit.generation = generation;
    hit.quick_generation = needs_fence_ ? 0 : generation;
    hit.host = run->host - below;
    hit.tracker = run->tracker;
    hit.offset = run->offset - below;
    if (is_in_window) {
        hit.io_tracker = state_->tracker.get();
        hit.io_offset = hit.base - window->base().value();
    }
    hit.guest = GuestAddress{guest.value() - below};
    hit.permissions =
        translation.permissions() & (region->is_writable() ? Permissions::read_write : Permissions::read);
    // An aligned address has to be an aligned host address; where it is not, the slow way looks closely.
    const bool is_congruent = ((reinterpret_cast<std::uintptr_t>(hit.host) - hit.base) & 7) == 0;
    const std::uint64_t room = is_congruent && hit.size_bytes >= 8 ? hit.size_bytes - 7 : 0;
    hit.readable_room = allows(hit.permissions, Access::read) ? room : 0;
    hit.writable_room = allows(hit.permissions, Access::write) ? room : 0;
    // In turn; nobody finds what is of another generation.
    hits_[next_hit_] = hit;
    next_hit_ = (next_hit_ + 1) % hits_.size();
    hit_ = hit;
    return {};
}

bool TranslatedMemory::find_again(IoAddress address, std::uint64_t count, Access access) {
    leave();
    const bool is_here =
        hit_.has(address, access) && hit_.generation == generation_->load(std::memory_order_relaxed);
    if (!is_here && !recall(address, access) && !aim(address, access, Asking::no)) return false;
    const std::uint64_t room = access == Access::read ? hit_.readable_room : hit_.writable_room;
    if (enter() && detail::fits(address.value() - hit_.base, count, room)) return true;
    leave();
    return false;
}

AccessResult<Piece> TranslatedMemory::enter_piece(IoAddress address, Access access) {
    for (unsigned turn = 0; turn < max_translation_tries; ++turn) {
        const bool is_known = hit_.has(address, access) || recall(address, access);
        if (!is_known || !enter()) {
            leave();
            GM_TRY(aim(address, access, Asking::yes));
            if (!enter() || !hit_.has(address, access)) {
                leave();
                continue;
            }
        }
        const std::uint64_t offset = address.value() - hit_.base;
        return Piece{.host = hit_.host + offset,
                     .size_bytes = hit_.size_bytes - offset,
                     .guest = GuestAddress{hit_.guest.value() + offset},
                     .tracker = hit_.tracker,
                     .offset = hit_.offset + offset,
                     .io_tracker = hit_.io_tracker,
                     .io_offset = hit_.io_offset + offset};
    }
    return AccessError{AccessReason::translator_failed, access, address.value(), 0};
}

AccessResult<Piece> TranslatedMemory::find_piece(IoAddress address, Access access) {
    auto piece = TranslatedMemory::enter_piece(address, access);
    leave();
    return piece;
}

TranslatedMemory::Spot TranslatedMemory::to_spot(const Piece& piece) {
    Spot spot;
    spot.host = piece.host;
    spot.offset = piece.offset - hit_.offset;
    spot.memory = this;
    return spot;
}

std::shared_ptr<const Region> TranslatedMemory::find_region(GuestAddress address) {
    return reader_.held_map().find_region(address);
}

Result<IoHold> TranslatedMemory::hold(const IoRange& range, std::string why) {
    const std::scoped_lock lock{state_->mutex};
    if (state_->holds.size() >= max_io_holds)
        return Error{Errc::exhausted, fmt::format("io space '{}': hold '{}': there are at most {}",
                                                  state_->name, why, max_io_holds)};
    const std::uint64_t ticket = state_->next_ticket++;
    state_->holds.emplace(
        ticket, detail::IoSpaceState::Hold{.range = range,
                                           .generation = state_->generation.load(std::memory_order_relaxed),
                                           .handle = state_->slots.at(&slot_),
                                           .why = std::move(why)});
    return IoHold{state_, ticket};
}

}  // namespace guestmem
