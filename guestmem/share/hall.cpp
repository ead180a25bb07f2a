// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/hall.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "guestmem/share/ivshmem/wire.hpp"

namespace guestmem::share {

std::string Entrant::to_text() const {
    const std::string name = is_tool ? "host tool" : vm.empty() ? "client" : fmt::format("vm '{}'", vm);
    return fmt::format("{} (pid {}, uid {})", name, who.pid, who.uid);
}

Hall::Hall(HallHost host, Share share, std::span<const std::uint32_t> owned_slots)
    : host_(std::move(host)), share_(std::move(share)), roster_(share_.config(), owned_slots) {}

void Hall::log(LogLevel level, std::string_view text) {
    host_.log.write(level, fmt::format("share '{}': {}", share_.config().name, text), host_.loop.now_ms());
}

const Peer* Hall::find_peer(std::uint32_t id) const {
    const auto found =
        std::ranges::find_if(peers_, [&](const Peer& peer) { return !peer.is_gone && peer.id == id; });
    return found == peers_.end() ? nullptr : &*found;
}

Result<std::shared_ptr<const Doorbells>> Hall::doorbells_for(std::uint32_t id) {
    if (share_.config().ids == IdPolicy::stable) return share_.slots().at(id);
    for (;;) {
        auto bells = create_doorbells(id, share_.config().vectors);
        if (bells || bells.error().code() != Errc::exhausted || !shed_slowest()) return bells;
    }
}

Result<std::uint32_t> Hall::admit(Entrant& entrant) {
    const std::uint32_t id = GM_TRY(roster_.take(entrant.wish, entrant.own_slots));
    auto bells = doorbells_for(id);
    if (!bells) {
        roster_.release(id);
        return std::move(bells).error();
    }
    Peer& peer = peers_.emplace_back();
    auto source = host_.loop.add_io(entrant.stream.view(), IoEvents::readable,
                                    [this, &peer](IoEvents events) { serve(peer, events); });
    if (!source) {
        peers_.pop_back();
        roster_.release(id);
        return std::move(source).error();
    }
    peer.id = id;
    peer.bells = std::move(*bells);
    peer.source = std::move(*source);
    const std::uint64_t now = host_.loop.now_ms();
    peer.deadline_ms = now + host_.limits.handshake_timeout_ms;
    peer.last_deadline_ms = now + handshake_patience * host_.limits.handshake_timeout_ms;
    peer.entrant = std::move(entrant);
    fill_handshake(peer);
    flush(peer);
    settle();
    host_.on_work_left();
    return id;
}

/// Version, own id, memory, the others' doorbells, the peer's own. With stable ids the others are all slots,
/// taken or not, and nobody hears of the newcomer; with classic ids they are those who are here, and hear.
void Hall::fill_handshake(Peer& peer) {
    peer.outbox.add_value(ivshmem_protocol_version);
    peer.outbox.add_value(peer.id);
    peer.outbox.add_memory(share_.memory());
    peer.outbox.add_slots(share_.slots(), peer.id);
    if (share_.config().ids == IdPolicy::classic) {
        for (Peer& other : peers_) {
            if (&other == &peer || other.is_gone) continue;
            peer.outbox.add_doorbells(other.bells);
            other.outbox.add_doorbells(peer.bells);
            is_unsettled_ = true;
        }
    }
    peer.outbox.add_doorbells(peer.bells);
    peer.queue_limit = peer.outbox.count_queued() + host_.limits.queued_messages;
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
    if (share_.config().ids == IdPolicy::classic) {
        for (Peer& other : peers_)
            if (!other.is_gone) other.outbox.add_value(peer.id);
    } else {
        // Kicks for this holder are stale for the next one; those that come from here on are the next one's.
        for (const EventFd& bell : peer.bells->vectors)
            if (auto drained = bell.drain(); !drained) log(LogLevel::error, drained.error().message());
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
            if (peer.outbox.count_queued() > peer.queue_limit) {
                cut(peer,
                    fmt::format("was closed: it does not read, {} messages wait", peer.outbox.count_queued()),
                    LogLevel::warning);
            } else if (!peer.is_blocked && !peer.is_stalled) {
                flush(peer);
            }
            has_changed = has_changed || peer.is_gone;
        }
    }
    for (auto peer = peers_.begin(); peer != peers_.end();) {
        if (!peer->is_gone) {
            ++peer;
            continue;
        }
        Entrant departed = std::move(peer->entrant);
        peer = peers_.erase(peer);
        host_.on_departed(std::move(departed));
    }
    is_unsettled_ = false;
}

bool Hall::shed_slowest() {
    if (share_.config().ids == IdPolicy::stable) return false;
    Peer* slowest = nullptr;
    for (Peer& peer : peers_) {
        const bool is_behind = !peer.is_gone && !peer.outbox.is_empty();
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
        if (!peer.is_joined && now_ms >= peer.deadline_ms) {
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
    if (config.ids == IdPolicy::classic) {
        if (peer == nullptr)
            return Error{Errc::not_found, fmt::format("share '{}': nobody has id {}", config.name, id)};
        GM_TRY(host_.ringer.ring(peer->bells->vectors[vector]));
        return true;
    }
    if (id >= config.slots)
        return Error{Errc::out_of_range, fmt::format("share '{}': peer {} where the slots are 0 to {}",
                                                     config.name, id, config.slots - 1)};
    GM_TRY(host_.ringer.ring(share_.slots()[id]->vectors[vector]));
    return peer != nullptr;
}

}  // namespace guestmem::share
