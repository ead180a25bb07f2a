// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/hall.hpp"
#include "guestmem/share/ivshmem/wire.hpp"

// Of a Hall: who rings whom by doorbells of a pair.

namespace guestmem::share {
namespace {

/// It rings by doorbells of its own, where there are some.
bool is_caller(const Peer& peer) {
    return !peer.is_gone && !peer.entrant.counts_rings && peer.entrant.permissions.may_notify;
}

bool is_hearer(const Peer& peer) { return !peer.is_gone && peer.entrant.hears_senders && !peer.is_revoked; }

}  // namespace

/// Who hears senders apart comes where all who ring without counting have doorbells of their own for it, everybody
/// else where none has.
bool Hall::is_preferred(const Entrant& entrant, std::uint32_t slot) const {
    const ShareConfig& config = share_.config();
    if (!can_have_pairs(config)) return true;
    bool has_caller = false;
    bool is_paired_for_all = true;
    bool is_paired_for_any = false;
    for (const Peer& peer : peers_) {
        if (!is_caller(peer)) continue;
        const bool is_paired = peer.entrant.pairs.find(slot) != nullptr;
        has_caller = true;
        is_paired_for_all = is_paired_for_all && is_paired;
        is_paired_for_any = is_paired_for_any || is_paired;
    }
    const bool is_set_aside = slot >= first_pair_slot(config);
    if (!entrant.hears_senders) return !is_paired_for_any && !is_set_aside;
    return has_caller ? is_paired_for_all : is_set_aside;
}

/// Towards those who hear senders apart, and towards slots that are set aside for them.
Result<PairBells> Hall::make_pairs(const Entrant& entrant, std::uint32_t id) {
    const ShareConfig& config = share_.config();
    if (!can_have_pairs(config) || entrant.counts_rings || !entrant.permissions.may_notify)
        return PairBells{};
    // Of a share that the file has they are reckoned with from the start.
    const std::uint64_t spare =
        config.is_dynamic ? host_.spare_doorbells(record_->maker.get()) : most_pair_bells(config);
    SenderSet receivers;
    // Those who are here before those who may come: without room for all of them there are fewer.
    for (const bool is_for_held : {true, false}) {
        for (std::uint32_t slot = 0; slot < config.slots; ++slot) {
            const Peer* const holder = find_peer(slot);
            if (slot == id || (holder != nullptr) != is_for_held) continue;
            const bool is_wanted = holder != nullptr
                                       ? holder->entrant.hears_senders
                                       : slot >= first_pair_slot(config) && !roster_.is_owned(slot);
            if (is_wanted && (receivers.count() + 1) * config.vectors <= spare) receivers.set(slot);
        }
    }
    GM_TRY(host_.legacy.check_room(receivers.count() * config.vectors));
    for (;;) {
        auto pairs = PairBells::create(config, receivers);
        if (pairs || pairs.error().code() != Errc::exhausted || !shed_slowest()) return pairs;
    }
}

void Hall::tell_slots(Peer& peer) {
    const auto& slots = share_.slots();
    if (peer.entrant.pairs.is_empty()) return;
    peer.told.assign(slots.begin(), slots.end());
    for (std::uint32_t slot = 0; slot < slots.size(); ++slot)
        if (auto own = peer.entrant.pairs.find(slot)) peer.told[slot] = std::move(own);
}

void Hall::add_caller(Peer& hearer, const Peer& caller) {
    const auto bells = caller.entrant.pairs.find(hearer.id);
    if (bells == nullptr) return;
    if (hearer.entrant.record != nullptr) hearer.entrant.record->is_told.store(0);
    const std::int64_t label = ivshmem_caller_mark + caller.id;
    // That the slot's former holder is gone is said by what follows.
    hearer.outbox.drop(label, label);
    hearer.outbox.add_value(label);
    hearer.outbox.add_doorbells(bells, label);
    is_unsettled_ = true;
}

void Hall::announce_caller(const Peer& caller) {
    if (caller.entrant.pairs.is_empty()) return;
    for (Peer& hearer : peers_)
        if (&hearer != &caller && is_hearer(hearer) && !hearer.is_waiting) add_caller(hearer, caller);
}

void Hall::add_callers(Peer& hearer) {
    if (!is_hearer(hearer) || hearer.is_waiting) return;
    const std::size_t count_before = hearer.outbox.count_queued();
    for (const Peer& caller : peers_)
        if (&caller != &hearer && !caller.is_gone && !caller.is_waiting) add_caller(hearer, caller);
    hearer.count_handshake += hearer.outbox.count_queued() - count_before;
}

void Hall::queue_caller_gone(const Peer& caller) {
    for (Peer& hearer : peers_) {
        if (&hearer == &caller || !is_hearer(hearer) || hearer.is_waiting) continue;
        const auto bells = caller.entrant.pairs.find(hearer.id);
        if (!bells) continue;
        if (hearer.entrant.record != nullptr) hearer.entrant.record->is_told.store(0);
        const std::int64_t label = ivshmem_caller_mark + caller.id;
        // Doorbells that a slow reader has not heard of would stay open. What was rung by them it hears without a name.
        if (hearer.outbox.drop(label, label)) pass_on(*bells, *hearer.bells);
        hearer.outbox.add_value(label);
        is_unsettled_ = true;
    }
}

void Hall::pass_on(const Doorbells& from, const Doorbells& to) {
    for (std::uint32_t vector = 0; vector < from.vectors.size(); ++vector) {
        auto drained = from.vectors[vector].drain();
        if (!drained) {
            log(LogLevel::error, drained.error().message());
        } else if (*drained != 0) {
            // A share has as many vectors for everybody.
            if (auto rung = host_.ring(to.vectors[vector]); !rung)
                log(LogLevel::error, rung.error().message());
        }
    }
}

/// The receiver listens on its slot's own doorbells, and the sender has been told others.
void Hall::bridge(Peer& sender, const Peer& receiver) {
    const auto from = sender.entrant.pairs.find(receiver.id);
    if (from == nullptr || sender.is_gone || &sender == &receiver) return;
    for (std::uint32_t vector = 0; vector < from->vectors.size(); ++vector) {
        auto source = host_.loop.add_io(from->vectors[vector].view(), IoEvents::readable,
                                        [this, from, to = receiver.bells, vector](IoEvents) {
                                            auto drained = from->vectors[vector].drain();
                                            if (!drained)
                                                return log(LogLevel::error, drained.error().message());
                                            // A share has as many vectors for everybody.
                                            if (*drained == 0) return;
                                            if (auto rung = host_.ring(to->vectors[vector]); !rung)
                                                log(LogLevel::error, rung.error().message());
                                        });
        if (source) {
            sender.bridges.push_back({receiver.id, std::move(*source)});
        } else {
            log(LogLevel::error, source.error().message());
        }
    }
}

void Hall::bridge_to(const Peer& receiver) {
    if (is_classic() || receiver.entrant.hears_senders) return;
    for (Peer& sender : peers_) bridge(sender, receiver);
}

/// Kicks for this holder of the slot are stale for the next one, and its own doorbells of pairs are over.
void Hall::leave_pairs(const Peer& receiver) {
    queue_caller_gone(receiver);
    for (Peer& sender : peers_) {
        std::erase_if(sender.bridges, [&](const Bridge& one) { return one.receiver == receiver.id; });
        const auto bells = sender.entrant.pairs.find(receiver.id);
        if (bells == nullptr) continue;
        for (const EventFd& bell : bells->vectors)
            if (auto drained = bell.drain(); !drained) log(LogLevel::error, drained.error().message());
    }
}

void Hall::renew_callers(Peer& hearer) {
    if (!is_hearer(hearer) || hearer.is_waiting || !can_have_pairs(share_.config())) return;
    if (hearer.entrant.record != nullptr) hearer.entrant.record->is_told.store(0);
    hearer.outbox.drop(ivshmem_caller_mark, ivshmem_callers_over);
    hearer.outbox.add_value(ivshmem_callers_over);
    ++hearer.count_handshake;
    is_unsettled_ = true;
    add_callers(hearer);
}

void Hall::renew_pairs() {
    for (Peer& peer : peers_) {
        if (peer.is_gone) continue;
        bridge_to(peer);
        renew_callers(peer);
    }
}

}  // namespace guestmem::share
