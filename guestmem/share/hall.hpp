// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "guestmem/base/log.hpp"
#include "guestmem/base/result.hpp"
#include "guestmem/share/ivshmem/outbox.hpp"
#include "guestmem/share/roster.hpp"
#include "guestmem/share/share.hpp"
#include "guestmem/sys/event_loop.hpp"
#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// One share with the peers that are in it: admits, tells, and sees them leave.
///
/// Concepts: an Entrant is a connection that asks to come in; a Peer is one that holds an id. A peer is joining
/// until everything of its handshake is sent, joined after.
/// Contract: admit() takes the entrant's stream only when it succeeds; its error carries the errno to refuse
/// with. Everything that the handshake needs (id, doorbells, queue) exists before its first byte is sent.
/// A peer leaves when it closes, sends a byte, misses the handshake deadline or overflows its queue; its stream
/// then goes to on_departed. The deadline moves with every message that the client takes, up to
/// handshake_patience timeouts in all: a crowd on a slow host is served, a client that dawdles is not.
/// Lifetime: loop, log and callbacks outlive the hall; a hall does not move (peers' handlers know its address).
/// Threads: the owner's loop.
/// Cost: with stable ids a peer's coming and going touches no other peer.

namespace guestmem::share {

/// How many handshake timeouts a handshake may take that goes on.
inline constexpr std::uint64_t handshake_patience = 6;

struct Entrant {
    UnixStream stream;
    PeerCredentials who;
    std::string vm;  ///< empty: not a named VM
    std::string door;
    Wish wish = Wish::lowest;
    std::vector<std::uint32_t> own_slots;
    bool is_tool = false;

    /// "vm 'linux' (pid 12, uid 107)".
    [[nodiscard]] std::string to_text() const;
};

struct Peer {
    Entrant entrant;
    std::uint32_t id = 0;
    std::shared_ptr<const Doorbells> bells;
    Outbox outbox;
    std::size_t queue_limit = 0;
    std::uint64_t deadline_ms = 0;       ///< of the next progress in its handshake
    std::uint64_t last_deadline_ms = 0;  ///< of the whole handshake
    bool is_joined = false;
    bool is_stalled = false;  ///< descriptors in flight at the limit: the next tick tries again
    bool is_blocked = false;  ///< waits until its socket is writable
    bool is_gone = false;
    EventSource source;
};

struct HallHost {
    EventLoop& loop;
    LogLimiter& log;
    const Limits& limits;
    Ringer& ringer;
    std::function<void(Entrant)> on_departed;
    /// Something waits for tick().
    std::function<void()> on_work_left;
};

class Hall {
public:
    Hall(HallHost host, Share share, std::span<const std::uint32_t> owned_slots);
    Hall(const Hall&) = delete;
    Hall& operator=(const Hall&) = delete;
    ~Hall() = default;

    [[nodiscard]] Result<std::uint32_t> admit(Entrant& entrant);
    /// With classic ids the doorbells of those who left stay open while a slow reader has not heard of them. Cuts the
    /// slowest such reader; false when there is none. For when descriptors run out.
    bool shed_slowest();
    /// Deadlines and retries. True while there is something to wait for.
    bool tick(std::uint64_t now_ms);
    /// Kicks a vector of one id; false when nobody holds the id (with stable ids the kick waits there).
    [[nodiscard]] Result<bool> ring(std::uint32_t id, std::uint32_t vector);

    [[nodiscard]] const Share& share() const { return share_; }
    [[nodiscard]] const std::list<Peer>& peers() const { return peers_; }
    [[nodiscard]] const Peer* find_peer(std::uint32_t id) const;

private:
    [[nodiscard]] Result<std::shared_ptr<const Doorbells>> doorbells_for(std::uint32_t id);
    void fill_handshake(Peer& peer);
    void serve(Peer& peer, IoEvents events);
    void flush(Peer& peer);
    void wait_for(Peer& peer, IoEvents events);
    void cut(Peer& peer, std::string_view why, LogLevel level);
    void settle();
    void log(LogLevel level, std::string_view text);

    HallHost host_;
    Share share_;
    Roster roster_;
    // A list: a peer's handler holds its address.
    std::list<Peer> peers_;
    bool is_unsettled_ = false;  ///< somebody is gone, or notices were queued
};

}  // namespace guestmem::share
