// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "guestmem/base/log.hpp"
#include "guestmem/base/result.hpp"
#include "guestmem/share/ivshmem/outbox.hpp"
#include "guestmem/share/legacy.hpp"
#include "guestmem/share/pair_bells.hpp"
#include "guestmem/share/rights.hpp"
#include "guestmem/share/roster.hpp"
#include "guestmem/share/share.hpp"
#include "guestmem/sys/event_loop.hpp"
#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// One share with the peers that are in it: admits, tells, and sees them leave.
///
/// Concepts: an Entrant is a connection that asks to come in; a Peer is one that holds an id. A peer is joining
/// until everything of its handshake is sent, joined after. While the share's memory still gets its pages, or is
/// being cleared, peers have their ids and wait for their first message: work() goes on with it, a chunk at a time.
/// Contract: admit() takes the entrant's stream only when it succeeds; its error carries the errno to refuse
/// with. Everything that the handshake needs (id, doorbells, queue) exists before its first byte is sent, and is in
/// the journal and with the keeper.
/// A peer gets what its permissions say: memory that it cannot map writable, or no doorbells but its own.
/// A peer leaves when it closes, sends a byte, misses the handshake deadline or overflows its queue; its stream
/// then goes to on_departed. The deadline moves with every message that the client takes, up to
/// handshake_patience timeouts in all: a crowd on a slow host is served, a client that dawdles is not.
/// A peer that is revoked keeps what it has, and gets nothing more; a holder that is revoked holds it no more.
/// When the last peer leaves and nobody holds the share, the memory of one that does not keep it is cleared.
/// Who rings without counting is told, towards receivers that hear senders apart, doorbells of its own
/// (pair_bells.hpp); such receivers learn of them when it comes and goes.
/// resume() takes a peer over from an earlier instance: it notices nothing.
/// Lifetime: loop, log, legacy and callbacks outlive the hall; a hall does not move (peers' handlers know its address).
/// Threads: the owner's loop.
/// Cost: with stable ids a peer's coming and going touches no other peer but those with a bell.

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
    Permissions permissions = {};
    std::optional<EventFd> bell = {};    ///< rung when somebody comes or goes
    ConnectionRecord* record = nullptr;  ///< in the journal, while it counts there
    std::uint32_t number = 0;  ///< of the connection: the keeper has the stream under it; 0: it has not
    std::uint32_t max_queued = UINT32_MAX;  ///< messages that may wait for it beside its handshake
    bool takes_batches = false;             ///< its first messages may come together
    bool hears_senders = false;             ///< it is told the doorbells of pairs towards it
    bool counts_rings = false;              ///< in its sender page; who does not has doorbells of pairs
    PairBells pairs = {};                   ///< those by which it rings others

    /// "vm 'linux' (pid 12, uid 107)".
    [[nodiscard]] std::string to_text() const;
};

/// Kicks of a pair's doorbell for a receiver that does not listen there, passed on.
struct Bridge {
    std::uint32_t receiver = 0;
    EventSource source;
};

struct Peer {
    Entrant entrant;
    std::uint32_t id = 0;
    std::shared_ptr<const Doorbells> bells;
    /// By which doorbells it rings each slot, where some are its own; empty: by the slots'.
    std::vector<std::shared_ptr<const Doorbells>> told;
    Outbox outbox;
    std::size_t count_handshake = 0;     ///< messages that it began with
    std::uint64_t deadline_ms = 0;       ///< of the next progress in its handshake
    std::uint64_t last_deadline_ms = 0;  ///< of the whole handshake
    bool is_waiting = false;             ///< for the memory
    bool is_joined = false;
    bool is_stalled = false;  ///< descriptors in flight at the limit: the next tick tries again
    bool is_blocked = false;  ///< waits until its socket is writable
    bool is_revoked = false;
    bool is_gone = false;
    EventSource source;
    std::vector<Bridge> bridges = {};
};

/// A connection that keeps the share alive, without a place in it. It is told (one message, the version) when the
/// memory is there.
struct Holder {
    Entrant entrant;
    bool is_told = false;
    EventSource source;
};

struct HallHost {
    EventLoop& loop;
    LogLimiter& log;
    const Limits& limits;
    /// Without waiting, whatever the bell's other holders did to it.
    std::function<Result<void>(const EventFd& bell)> ring;
    Legacy& legacy;
    std::function<void(Entrant)> on_departed;
    /// Something waits for tick().
    std::function<void()> on_work_left;
    /// Something waits for work().
    std::function<void()> on_chores_left;
    /// How many doorbells a share of this maker may have beside those that it has.
    std::function<std::uint64_t(const std::string& maker)> spare_doorbells;
};

class Hall {
public:
    /// `record` is of this share.
    Hall(HallHost host, Share share, ShareRecord& record, std::span<const std::uint32_t> owned_slots);
    Hall(const Hall&) = delete;
    Hall& operator=(const Hall&) = delete;
    ~Hall() = default;

    [[nodiscard]] Result<std::uint32_t> admit(Entrant& entrant);
    /// A peer of an earlier instance, by its record. An error names why it cannot go on; then `entrant` keeps the
    /// stream.
    [[nodiscard]] Result<void> resume(Entrant& entrant, std::shared_ptr<const Doorbells> bells);
    /// A holder comes: hall_holders.cpp. As admit() it takes the stream only when it succeeds.
    [[nodiscard]] Result<void> hold(Entrant& entrant);
    [[nodiscard]] Result<void> resume_hold(Entrant& entrant);
    [[nodiscard]] const std::list<Holder>& holders() const { return holders_; }
    /// Nobody is in it, and nobody holds it.
    [[nodiscard]] bool is_unused() const { return peers_.empty() && holders_.empty(); }
    /// An earlier instance has made it; until settle_in() it waits for its peers.
    void mark_inherited() { is_inherited_ = true; }
    [[nodiscard]] bool is_inherited() const { return is_inherited_; }
    /// After the last resume(): slots that the pages show as held, and that nobody holds.
    void show_who_is_gone();
    /// After the last resume(): a share that nobody came back to is as one that everybody has left.
    void settle_in();
    /// Somebody who left while nobody looked, or could not be resumed: those who knew it are told.
    void tell_gone(std::uint32_t id);
    /// Doorbells of those who left stay open while a slow reader of their comings and goings has not heard: with
    /// classic ids all, else the few that it has heard of in part. Cuts the slowest such reader; false when there is
    /// none. For when descriptors run out.
    bool shed_slowest();
    /// Deadlines and retries. True while there is something to wait for.
    bool tick(std::uint64_t now_ms);
    /// A chunk of pages. True while there are more.
    bool work();
    /// Kicks a vector of one id; false when nobody holds the id (with stable ids the kick waits there).
    [[nodiscard]] Result<bool> ring(std::uint32_t id, std::uint32_t vector);
    /// Which slots belong to VMs from here on.
    void set_owned(std::span<const std::uint32_t> owned_slots) { roster_.set_owned(owned_slots); }
    /// Asks for each peer what it may do from here on; nothing: it has lost its right. The lines say who did.
    void review(const std::function<std::optional<Permissions>(const Entrant&)>& rights,
                std::vector<std::string>& changes);
    /// How many messages may wait for each peer beside its handshake, from here on.
    void limit_queues(const std::function<std::uint64_t(const Entrant&)>& most);
    /// No newcomers; on_departed of the last peer is the end.
    void retire();
    [[nodiscard]] bool is_retired() const { return record_->stage.load() == ShareStage::retired; }
    /// Nobody is here, and no instance of the service has a use for it.
    [[nodiscard]] bool is_over() const;
    /// Sends nothing any more, and closes nothing: the next instance goes on.
    void abandon();

    [[nodiscard]] const Share& share() const { return share_; }
    [[nodiscard]] Share& share() { return share_; }
    [[nodiscard]] const ShareRecord& record() const { return *record_; }
    [[nodiscard]] ShareRecord& record() { return *record_; }
    [[nodiscard]] const std::list<Peer>& peers() const { return peers_; }
    [[nodiscard]] const Peer* find_peer(std::uint32_t id) const;

private:
    [[nodiscard]] Result<std::shared_ptr<const Doorbells>> doorbells_for(std::uint32_t id);
    [[nodiscard]] Result<Peer*> seat(Entrant& entrant, std::uint32_t id,
                                     std::shared_ptr<const Doorbells> bells);
    void enter_in_journal(Peer& peer);
    /// `count_done` messages of it were sent by an earlier instance.
    void start_handshake(Peer& peer, std::uint32_t count_done = 0);
    void fill_handshake(Peer& peer);
    [[nodiscard]] std::size_t spare_messages(const Peer& peer) const {
        return std::min(host_.limits.queued_messages, peer.entrant.max_queued);
    }
    void announce_newcomer(const Peer& peer);
    // hall_pairs.cpp
    [[nodiscard]] bool is_preferred(const Entrant& entrant, std::uint32_t slot) const;
    [[nodiscard]] Result<PairBells> make_pairs(const Entrant& entrant, std::uint32_t id);
    void tell_slots(Peer& peer);
    /// Those who hear senders apart learn by which doorbells it rings them.
    void announce_caller(const Peer& caller);
    /// All of them, for one who hears senders apart.
    void add_callers(Peer& hearer);
    void add_caller(Peer& hearer, const Peer& caller);
    void queue_caller_gone(const Peer& caller);
    void pass_on(const Doorbells& from, const Doorbells& to);
    void bridge(Peer& sender, const Peer& receiver);
    void bridge_to(const Peer& receiver);
    void leave_pairs(const Peer& receiver);
    /// Who hears senders apart is told all of them again.
    void renew_callers(Peer& hearer);
    /// After the last resume(): all who hear senders apart are.
    void renew_pairs();
    void queue_gone(std::uint32_t id);
    [[nodiscard]] Result<void> seat_holder(Entrant& entrant, bool is_told);
    void serve_holder(Holder& holder);
    void end_holder(Holder& holder, std::string_view why);
    /// The memory is there, or there is none (an errno).
    void tell_holders(int os_error);
    void show_presence(std::uint32_t id, bool is_present);
    void serve(Peer& peer, IoEvents events);
    void flush(Peer& peer);
    void wait_for(Peer& peer, IoEvents events);
    void cut(Peer& peer, std::string_view why, LogLevel level);
    void leave_empty();
    void settle();
    void log(LogLevel level, std::string_view text);
    [[nodiscard]] bool is_classic() const { return share_.config().ids == IdPolicy::classic; }
    [[nodiscard]] bool is_ready() const { return record_->stage.load() != ShareStage::blank; }

    HallHost host_;
    Share share_;
    ShareRecord* record_;
    Roster roster_;
    // A list: a peer's handler holds its address.
    std::list<Peer> peers_;
    std::list<Holder> holders_;
    bool is_inherited_ = false;
    bool is_written_ = false;    ///< somebody has had the memory since it was clean
    bool is_unsettled_ = false;  ///< somebody is gone, or notices were queued
};

}  // namespace guestmem::share
