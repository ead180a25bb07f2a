// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/hall.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "guestmem/share/ivshmem/wire.hpp"

namespace guestmem::share {

std::string Entrant::to_text() const {
    const std::string name = !vm.empty() ? fmt::format("vm '{}'", vm) : is_tool ? "host tool" : "client";
    return fmt::format("{} (pid {}, uid {})", name, who.pid, who.uid);
}

Hall::Hall(HallHost host, Share share, ShareRecord& record, std::span<const std::uint32_t> owned_slots)
    : host_(std::move(host)),
      share_(std::move(share)),
      record_(&record),
      roster_(share_.config(), owned_slots) {
    roster_.set_next_classic(record.next_classic);
    if (!is_ready()) host_.on_chores_left();
}

void Hall::log(LogLevel level, std::string_view text) {
    host_.log.write(level, fmt::format("share '{}': {}", share_.config().name, text), host_.loop.now_ms());
}

const Peer* Hall::find_peer(std::uint32_t id) const {
    const auto found =
        std::ranges::find_if(peers_, [&](const Peer& peer) { return !peer.is_gone && peer.id == id; });
    return found == peers_.end() ? nullptr : &*found;
}

Result<std::shared_ptr<const Doorbells>> Hall::doorbells_for(std::uint32_t id) {
    if (!is_classic()) return share_.slots().at(id);
    GM_TRY(host_.legacy.check_room(share_.config().vectors));
    for (;;) {
        auto bells = create_doorbells(id, share_.config().vectors);
        if (bells || bells.error().code() != Errc::exhausted || !shed_slowest()) return bells;
    }
}

/// A place in the list, and the loop looks at its socket. Nothing is promised yet.
Result<Peer*> Hall::seat(Entrant& entrant, std::uint32_t id, std::shared_ptr<const Doorbells> bells) {
    Peer& peer = peers_.emplace_back();
    auto source = host_.loop.add_io(entrant.stream.view(), IoEvents::readable,
                                    [this, &peer](IoEvents events) { serve(peer, events); });
    if (!source) {
        peers_.pop_back();
        return std::move(source).error();
    }
    peer.id = id;
    peer.bells = std::move(bells);
    peer.source = std::move(*source);
    peer.entrant = std::move(entrant);
    tell_slots(peer);
    if (peer.entrant.record != nullptr) peer.outbox.note_progress(peer.entrant.record->progress);
    return &peer;
}

/// Before its first message: the next instance must know what it was promised, and have it.
void Hall::enter_in_journal(Peer& peer) {
    const std::uint64_t now = host_.loop.now_ms();
    if (is_classic()) {
        record_->next_classic = roster_.next_classic();
        std::vector<KeepRequest> bells;
        for (std::uint32_t vector = 0; vector < peer.bells->vectors.size(); ++vector)
            bells.push_back({share_.doorbell_key(peer.id, vector), peer.bells->vectors[vector].view()});
        host_.legacy.keep(bells, now);
    }
    host_.legacy.keep(pair_bell_parts(share_, peer.id, peer.entrant.pairs), now);
    ConnectionRecord* const record = peer.entrant.record;
    if (record == nullptr) return;
    if (peer.entrant.bell)
        host_.legacy.keep({KeptKind::bell, 0, record->number}, peer.entrant.bell->view(), now);
    record->share = share_.number();
    record->id = peer.id;
    record->has_bell = 0;
    if (peer.entrant.bell) record->has_bell = peer.entrant.hears_senders ? 2 : 1;
    if (!is_classic())
        record->announced.store(static_cast<std::uint32_t>(peer.entrant.pairs.receivers().to_ulong()));
    record->may_notify = peer.entrant.permissions.may_notify ? 1 : 0;
    record->is_read_only = peer.entrant.permissions.is_read_only ? 1 : 0;
    record->stage.store(ConnectionStage::admitted);
}

Result<std::uint32_t> Hall::admit(Entrant& entrant) {
    if (is_retired()) return Error{Errc::unavailable, ESHUTDOWN, "the configuration has this share no more"};
    const std::uint32_t id = GM_TRY(roster_.take(
        entrant.wish, entrant.own_slots, [&](std::uint32_t slot) { return is_preferred(entrant, slot); }));
    auto bells = doorbells_for(id);
    auto pairs = make_pairs(entrant, id);
    if (!bells || !pairs) {
        roster_.release(id);
        return bells ? std::move(pairs).error() : std::move(bells).error();
    }
    entrant.pairs = std::move(*pairs);
    auto seated = seat(entrant, id, std::move(*bells));
    if (!seated) {
        roster_.release(id);
        return std::move(seated).error();
    }
    Peer& peer = **seated;
    enter_in_journal(peer);
    show_presence(id, true);
    bridge_to(peer);
    peer.is_waiting = !is_ready();
    is_written_ = is_written_ || !peer.is_waiting;
    if (peer.is_waiting) {
        host_.on_chores_left();
    } else {
        start_handshake(peer);
    }
    settle();
    host_.on_work_left();
    return id;
}

void Hall::start_handshake(Peer& peer, std::uint32_t count_done) {
    peer.is_waiting = false;
    const std::uint64_t now = host_.loop.now_ms();
    peer.deadline_ms = now + host_.limits.handshake_timeout_ms;
    peer.last_deadline_ms = now + handshake_patience * host_.limits.handshake_timeout_ms;
    fill_handshake(peer);
    peer.outbox.skip(count_done);
    announce_newcomer(peer);
    if (!is_inherited_) {
        announce_caller(peer);
        add_callers(peer);
    }
    flush(peer);
}

/// Version, own id, memory, the others' doorbells, the peer's own. With stable ids the others are all slots,
/// taken or not; with classic ids they are those who are here. Who may not notify hears of nobody.
void Hall::fill_handshake(Peer& peer) {
    const Permissions& permissions = peer.entrant.permissions;
    peer.outbox.add_value(ivshmem_protocol_version);
    peer.outbox.add_value(peer.id);
    peer.outbox.add_memory(permissions.is_read_only ? share_.read_only_memory() : share_.memory());
    if (permissions.may_notify) {
        peer.outbox.add_slots(peer.told.empty() ? share_.slots() : peer.told, peer.id);
        if (is_classic())
            for (const Peer& other : peers_)
                if (&other != &peer && !other.is_gone && !other.is_waiting)
                    peer.outbox.add_doorbells(other.bells);
    }
    peer.outbox.add_doorbells(peer.bells);
    if (peer.entrant.takes_batches) peer.outbox.batch_first();
    peer.count_handshake = peer.outbox.count_queued();
}

/// Classic ids: those who are here hear of it.
void Hall::announce_newcomer(const Peer& peer) {
    if (!is_classic()) return;
    std::vector<Peer*> hearers;
    for (Peer& other : peers_) {
        const bool hears = other.entrant.permissions.may_notify && !other.is_revoked && !other.is_waiting;
        if (&other == &peer || other.is_gone || !hears) continue;
        if (other.entrant.record != nullptr) other.entrant.record->is_told.store(0);
        hearers.push_back(&other);
    }
    if (peer.entrant.record != nullptr) peer.entrant.record->announced.store(1);
    for (Peer* const hearer : hearers) {
        hearer->outbox.add_doorbells(peer.bells);
        is_unsettled_ = true;
    }
}

void Hall::show_presence(std::uint32_t id, bool is_present) {
    if (is_classic()) return;
    share_.presence().set(id, is_present);
    for (const Peer& peer : peers_) {
        if (peer.is_gone || peer.is_revoked || !peer.entrant.bell) continue;
        if (auto rung = host_.ring(*peer.entrant.bell); !rung) log(LogLevel::error, rung.error().message());
    }
}

Result<void> Hall::resume(Entrant& entrant, std::shared_ptr<const Doorbells> bells) {
    const ConnectionRecord& record = *entrant.record;
    const std::uint32_t id = record.id;
    const bool is_told = record.is_told.load() != 0;
    const std::uint32_t count_done = record.progress.done.load();
    if (!record.progress.is_certain())
        return Error{
            Errc::corrupt, EIO,
            fmt::format("nobody can say whether message {} of its handshake was sent", count_done + 1)};
    if (is_classic() && !is_told)
        return Error{Errc::corrupt, EIO, "what it still had to be told of the others is not known"};
    if (!roster_.hold(id)) return Error{Errc::corrupt, EIO, fmt::format("id {} is not free", id)};
    if (!bells) bells = share_.slots().at(id);
    auto seated = seat(entrant, id, std::move(bells));
    if (!seated) {
        roster_.release(id);
        return std::move(seated).error();
    }
    Peer& peer = **seated;
    if (!is_classic() && !share_.presence().is_present(id)) show_presence(id, true);
    if (is_told) {
        peer.is_joined = true;
        // Messages that follow are counted on: what is told beside the handshake must not look like its beginning.
        peer.outbox.skip(count_done);
        return {};
    }
    peer.is_waiting = !is_ready();
    if (peer.is_waiting) return {};
    start_handshake(peer, count_done);
    return {};
}

/// Classic ids: those who know it hear that it is gone. They are in the journal as untold before its own record ends:
/// nobody is told twice.
void Hall::queue_gone(std::uint32_t id) {
    for (Peer& other : peers_) {
        if (other.is_gone || other.is_revoked || !other.entrant.permissions.may_notify) continue;
        if (other.entrant.record != nullptr) other.entrant.record->is_told.store(0);
        other.outbox.add_value(id);
        is_unsettled_ = true;
    }
}

void Hall::tell_gone(std::uint32_t id) {
    if (is_classic()) queue_gone(id);
    if (!is_classic() && share_.presence().is_present(id)) show_presence(id, false);
    settle();
}

void Hall::serve(Peer& peer, IoEvents events) {
    if (peer.is_gone) return;
    if (has_any(events, IoEvents::readable)) {
        std::array<std::byte, 1> buffer;
        // Looked at, not taken: see Undertaker.
        const auto received = peer.entrant.stream.peek(buffer);
        if (!received) {
            cut(peer, fmt::format("left ({})", received.error().message()), LogLevel::info);
        } else if (*received && (*received)->count_bytes == 0) {
            cut(peer, peer.is_joined ? "left" : "left before the end of its handshake", LogLevel::info);
        } else if (*received) {
            cut(peer, "was closed: it sent bytes, and ivshmem clients only listen", LogLevel::warning);
        }
    }
    if (!peer.is_gone && has_any(events, IoEvents::writable)) {
        peer.is_blocked = false;
        flush(peer);
    }
    settle();
}

void Hall::wait_for(Peer& peer, IoEvents events) {
    if (auto status = peer.source.set_events(events); !status)
        cut(peer, status.error().message(), LogLevel::error);
}

void Hall::flush(Peer& peer) {
    peer.is_stalled = false;
    const std::size_t sent_before = peer.outbox.count_sent();
    const auto status = peer.outbox.flush(peer.entrant.stream);
    if (!status) return cut(peer, fmt::format("left ({})", status.error().message()), LogLevel::info);
    if (peer.outbox.count_sent() != sent_before)
        peer.deadline_ms =
            std::min(peer.last_deadline_ms, host_.loop.now_ms() + host_.limits.handshake_timeout_ms);
    switch (*status) {
        case SendStatus::sent:
            peer.is_blocked = false;
            if (peer.entrant.record != nullptr) peer.entrant.record->is_told.store(1);
            wait_for(peer, IoEvents::readable);
            if (!peer.is_joined && !peer.is_gone) {
                peer.is_joined = true;
                log(LogLevel::info, fmt::format("{} joined as id {}", peer.entrant.to_text(), peer.id));
            }
            break;
        case SendStatus::would_block:
            peer.is_blocked = true;
            wait_for(peer, IoEvents::both_on_change);
            break;
        case SendStatus::too_many_in_flight:
            // The socket stays writable: waiting for it would spin. The next tick tries again.
            peer.is_stalled = true;
            wait_for(peer, IoEvents::readable);
            host_.on_work_left();
            break;
    }
}

void Hall::cut(Peer& peer, std::string_view why, LogLevel level) {
    if (peer.is_gone) return;
    peer.is_gone = true;
    is_unsettled_ = true;
    log(level, fmt::format("{} with id {} {}", peer.entrant.to_text(), peer.id, why));
    // Who waited for its first message was never told of to anybody.
    if (is_classic() && !peer.is_waiting) queue_gone(peer.id);
    if (peer.entrant.record != nullptr) host_.legacy.journal().remove(*peer.entrant.record);
    peer.entrant.record = nullptr;
    if (!is_classic()) {
        // Kicks for this holder are stale for the next one; those that come from here on are the next one's.
        for (const EventFd& bell : peer.bells->vectors)
            if (auto drained = bell.drain(); !drained) log(LogLevel::error, drained.error().message());
        leave_pairs(peer);
        show_presence(peer.id, false);
    }
    roster_.release(peer.id);
}

/// Sends what notices have queued; a peer that fails at it is cut, which queues further notices. Ends because
/// every round that repeats has cut somebody. Without a notice or a cut it looks at nobody: a join of many
/// messages comes here once per turn, and must not walk over all peers each time.
void Hall::settle() {
    if (!is_unsettled_) return;
    bool has_changed = true;
    while (has_changed) {
        has_changed = false;
        for (Peer& peer : peers_) {
            if (peer.is_gone || peer.outbox.is_empty()) continue;
            if (peer.outbox.count_queued() > peer.count_handshake + spare_messages(peer)) {
                cut(peer,
                    fmt::format("was closed: it does not read, {} messages wait", peer.outbox.count_queued()),
                    LogLevel::warning);
            } else if (!peer.is_blocked && !peer.is_stalled) {
                flush(peer);
            }
            has_changed = has_changed || peer.is_gone;
        }
    }
    bool has_left = false;
    for (auto peer = peers_.begin(); peer != peers_.end();) {
        if (!peer->is_gone) {
            ++peer;
            continue;
        }
        has_left = true;
        if (is_classic()) {
            std::vector<KeptKey> keys;
            for (std::uint32_t vector = 0; vector < peer->bells->vectors.size(); ++vector)
                keys.push_back(share_.doorbell_key(peer->id, vector));
            host_.legacy.forget(keys, host_.loop.now_ms());
        }
        const SenderSet paired = peer->entrant.pairs.receivers();
        host_.legacy.forget(pair_bell_keys(share_.config(), share_.number(), peer->id, paired),
                            host_.loop.now_ms());
        peer->bridges.clear();
        peer->entrant.pairs = {};
        Entrant departed = std::move(peer->entrant);
        peer = peers_.erase(peer);
        host_.on_departed(std::move(departed));
    }
    is_unsettled_ = false;
    if (has_left && peers_.empty()) leave_empty();
}

/// Nobody is here: the memory is made as it was at birth.
void Hall::leave_empty() {
    if (!holders_.empty()) return;
    if (is_over()) return host_.on_chores_left();
    if (share_.config().is_kept || !is_ready() || !is_written_) return;
    is_written_ = false;
    record_->stage.store(ShareStage::blank);
    share_.backing().begin_clear();
    host_.on_chores_left();
}

void Hall::show_who_is_gone() {
    if (is_classic()) return;
    std::vector<bool> held(share_.config().slots, false);
    for (const Peer& peer : peers_)
        if (!peer.is_gone) held.at(peer.id) = true;
    for (std::uint32_t slot = 0; slot < held.size(); ++slot)
        if (!held[slot] && share_.presence().is_present(slot)) show_presence(slot, false);
    renew_pairs();
}

void Hall::settle_in() {
    is_inherited_ = false;
    settle();
    // Whether anybody has had it is not known.
    is_written_ = true;
    if (peers_.empty()) leave_empty();
}

bool Hall::work() {
    if (is_ready() || is_retired()) return false;
    auto is_complete = share_.backing().allocate_step();
    if (is_complete && !*is_complete) return true;
    if (!is_complete) {
        // Whoever waits is told; the next one who comes tries again.
        log(LogLevel::error, is_complete.error().message());
        for (Peer& peer : peers_)
            if (peer.is_waiting) {
                const IvshmemMessage refusal = encode_ivshmem(-ENOMEM);
                static_cast<void>(peer.entrant.stream.send(refusal).has_value());
                cut(peer, "was refused: there is no memory for the share (ENOMEM)", LogLevel::warning);
            }
        tell_holders(ENOMEM);
        settle();
        return false;
    }
    record_->stage.store(ShareStage::ready);
    is_written_ = std::ranges::any_of(peers_, [](const Peer& peer) { return !peer.is_gone; });
    for (Peer& peer : peers_)
        if (peer.is_waiting && !peer.is_gone) start_handshake(peer);
    tell_holders(0);
    settle();
    return false;
}

bool Hall::is_over() const {
    // Who was in it may not have been taken over yet.
    return !is_inherited_ && is_unused() && (is_retired() || share_.config().is_dynamic);
}

void Hall::retire() {
    record_->stage.store(ShareStage::retired);
    for (Peer& peer : peers_)
        if (peer.is_waiting)
            cut(peer, "was closed: the configuration has this share no more", LogLevel::warning);
    while (!holders_.empty())
        end_holder(holders_.front(), "was closed: the configuration has this share no more");
    settle();
    if (is_over()) host_.on_chores_left();
}

void Hall::abandon() {
    for (Peer& peer : peers_) {
        peer.source = EventSource{};
        peer.bridges.clear();
    }
    for (Holder& holder : holders_) holder.source = EventSource{};
}

void Hall::review(const std::function<std::optional<Permissions>(const Entrant&)>& rights,
                  std::vector<std::string>& changes) {
    for (Peer& peer : peers_) {
        if (peer.is_gone) continue;
        const std::optional<Permissions> granted = rights(peer.entrant);
        const bool has_less = !granted || (!granted->may_notify && peer.entrant.permissions.may_notify) ||
                              (granted->is_read_only && !peer.entrant.permissions.is_read_only);
        if (has_less == peer.is_revoked) continue;
        peer.is_revoked = has_less;
        changes.push_back(
            fmt::format("share '{}': {} with id {} {}", share_.config().name, peer.entrant.to_text(), peer.id,
                        has_less ? "has lost its right; what it has mapped it keeps until it leaves"
                                 : "has its right again"));
        if (has_less && !peer.is_joined)
            cut(peer, "was closed: it has lost its right in the midst of its handshake", LogLevel::warning);
        // Who came and went in the meantime was not told to it.
        if (!has_less) renew_callers(peer);
    }
    for (auto next = holders_.begin(); next != holders_.end();) {
        Holder& holder = *next++;
        if (!is_retired() && rights(holder.entrant)) continue;
        changes.push_back(fmt::format("share '{}': {} has lost its right, and holds it no more",
                                      share_.config().name, holder.entrant.to_text()));
        end_holder(holder, "was closed: it has lost its right");
    }
    settle();
}

void Hall::limit_queues(const std::function<std::uint64_t(const Entrant&)>& most) {
    for (Peer& peer : peers_) {
        peer.entrant.max_queued =
            static_cast<std::uint32_t>(std::min<std::uint64_t>(most(peer.entrant), UINT32_MAX));
        is_unsettled_ = true;
    }
    settle();
}

bool Hall::shed_slowest() {
    Peer* slowest = nullptr;
    for (Peer& peer : peers_) {
        const bool is_told_of_others =
            is_classic() || (peer.is_joined && peer.entrant.hears_senders && peer.is_blocked);
        const bool is_behind = !peer.is_gone && is_told_of_others && !peer.outbox.is_empty();
        if (is_behind && (slowest == nullptr || peer.outbox.count_queued() > slowest->outbox.count_queued()))
            slowest = &peer;
    }
    if (slowest == nullptr) return false;
    cut(*slowest,
        fmt::format("was closed: descriptors ran out, and it does not read: {} messages wait",
                    slowest->outbox.count_queued()),
        LogLevel::warning);
    settle();
    return true;
}

bool Hall::tick(std::uint64_t now_ms) {
    bool is_waiting = false;
    for (Peer& peer : peers_) {
        if (peer.is_gone) continue;
        if (!peer.is_joined && !peer.is_waiting && now_ms >= peer.deadline_ms) {
            cut(peer,
                fmt::format(
                    "was closed at the handshake deadline: {} messages wait, none was taken for {} ms",
                    peer.outbox.count_queued(), host_.limits.handshake_timeout_ms),
                LogLevel::warning);
            continue;
        }
        if (peer.is_stalled) flush(peer);
        is_waiting = is_waiting || !peer.is_joined || peer.is_stalled;
    }
    settle();
    return is_waiting;
}

Result<bool> Hall::ring(std::uint32_t id, std::uint32_t vector) {
    const ShareConfig& config = share_.config();
    if (vector >= config.vectors)
        return Error{Errc::out_of_range, fmt::format("share '{}': vector {} where the vectors are 0 to {}",
                                                     config.name, vector, config.vectors - 1)};
    const Peer* const peer = find_peer(id);
    if (is_classic()) {
        if (peer == nullptr)
            return Error{Errc::not_found, fmt::format("share '{}': nobody has id {}", config.name, id)};
        GM_TRY(host_.ring(peer->bells->vectors[vector]));
        return true;
    }
    if (id >= config.slots)
        return Error{Errc::out_of_range, fmt::format("share '{}': peer {} where the slots are 0 to {}",
                                                     config.name, id, config.slots - 1)};
    GM_TRY(host_.ring(share_.slots()[id]->vectors[vector]));
    return peer != nullptr;
}

}  // namespace guestmem::share
