// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/share/sender_page.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/mapping.hpp"

/// A host program in a share: attached by name, with its memory, its doorbells, and who else is there.
///
/// Concepts: an attach is a place in the share, held as long as the session's ivshmem stream lives. The stream outlives
/// the service's process; when it ends, the service has gone for good, or has cut this peer, and the session is lost
/// until it is attached again. generation() counts attaches, memory_generation() the different memories that they led
/// to: who sees another number than before looks again.
/// Contract: a lost session attaches again by itself, with the same options, in the next operation that waits or looks
/// (wait, wait_ready, refresh), unless `may_reattach` is false. Mappings that map() gave are the caller's and stay as
/// they are; so do doorbells of a lost session: a peer that still listens hears them. Descriptors of vectors belong
/// to one attach; view() and changes_view() stay the same. What a service answers is checked before any of it is
/// used; one that lies, stalls or ends is an error of the call that meets it, and the session stays as it was.
/// Ready word: a convention between peers, see wait_ready(). docs/guide/share-client.md has a guest's side of it.
/// Threads: one at a time; ring() and vector views also beside a wait of another thread, while nothing attaches again.
/// Limits: SessionOptions::timeout_ms bounds an attach. An operation that attaches again may take that much
/// longer than it was told; after an attempt that failed the next comes min_retry_ms later, up to max_retry_ms. At
/// most max_peer_notices wait for take_notices(); the oldest are dropped, and that is said.
/// Cost: ring() is one system call, wait() two when it was rung, and neither allocates; is_present() and peers() make
/// none. From the first view() on each kick for this session costs its sender about 0.3 us more.
/// Example: examples/share_client.c shows the same through the C interface.
///     Session session = GM_TRY(Session::attach({.share = "mailbox"}));
///     Mapping memory = GM_TRY(session.map());
///     GM_TRY(session.ring(peer, 0));
///     WaitOutcome woken = GM_TRY(session.wait({.timeout_ms = 1000}));
/// Known holes: a peer that made its own doorbell blocking and filled its counter (2^64-2 kicks) makes ring() wait for
/// it; with RingStyle::never_waits it cannot, which costs about half a microsecond more a ring.

namespace guestmem::share {

inline constexpr std::uint64_t min_retry_ms = 100;
inline constexpr std::uint64_t max_retry_ms = 5'000;
inline constexpr std::size_t max_peer_notices = 4096;

enum class RingStyle : std::uint8_t {
    one_write,    ///< write(2)
    looks_first,  ///< a poll before the write: waits for nobody who does not fill its doorbell just then
    never_waits,  ///< through a Ringer: whatever a hostile peer did to its doorbell
};

struct SessionOptions {
    std::string control = {};  ///< a VM's own control socket or the common one; empty: default_control_path()
    std::string share;
    bool may_create = false;                 ///< makes the share when there is none of this name
    std::uint64_t size_bytes = 0;            ///< of a share that has to be made; others have their own
    std::uint32_t vectors = 0;               ///< the same; 0: what the service takes
    std::uint32_t slots = 0;                 ///< the same
    std::optional<std::uint32_t> slot = {};  ///< the wanted one
    MapAccess access = MapAccess::read_write;
    std::uint64_t timeout_ms = 10'000;  ///< of an attach in all
    RingStyle ring = RingStyle::one_write;
    /// Memory in a file can be cut short by its other writers, and then raises SIGBUS here.
    bool may_be_unsealed = false;
    bool may_reattach = true;
    /// take_senders() tells of those, too, who ring without counting (QEMU's guests). Their kicks come through
    /// doorbells of their own: vector_view() is not readable for them, view() is.
    bool hears_senders = false;
    /// Whoever hands doorbell_view() to the kernel does not count in a sender page, and says so here.
    bool counts_rings = true;
};

struct SessionFacts {
    std::uint32_t slot = 0;
    std::uint64_t size_bytes = 0;
    std::uint64_t extent_bytes = 0;
    std::uint32_t vectors = 0;
    std::uint32_t slots = 0;
    bool was_created = false;
    bool may_notify = false;
    bool is_read_only = false;
    bool is_sealed = false;
};

struct Kick {
    std::uint32_t vector = 0;
    std::uint64_t count = 0;  ///< rings since the last look
};

struct WaitOptions {
    std::span<const std::uint32_t> vectors = {};  ///< empty: all
    int timeout_ms = -1;                          ///< -1: for ever
    bool is_for_changes = false;                  ///< a change of who is there ends the wait, too
};

/// What happened to the session beside kicks.
struct SessionChanges {
    bool has_presence_changed = false;
    bool is_reattached = false;  ///< look at generation() and memory_generation()
    bool is_lost = false;        ///< the service ended or cut this peer, and is not there (told once)
    [[nodiscard]] bool has_any() const { return has_presence_changed || is_reattached || is_lost; }
};

struct WaitOutcome {
    std::span<const Kick> kicks = {};  ///< valid until the session waits again, or ends
    SessionChanges changes = {};
    [[nodiscard]] bool is_empty() const { return kicks.empty() && !changes.has_any(); }
};

/// Classic ids: a peer that came or went.
struct PeerNotice {
    std::uint32_t id = 0;
    bool has_come = false;
};

class Session {
public:
    [[nodiscard]] static Result<Session> attach(const SessionOptions& options);
    Session(Session&&) noexcept;
    Session& operator=(Session&&) noexcept;
    ~Session();

    [[nodiscard]] const SessionOptions& options() const;
    /// Of the last attach.
    [[nodiscard]] const SessionFacts& facts() const;
    [[nodiscard]] std::uint32_t id() const { return facts().slot; }
    /// The share's bytes, writable unless the session is read-only. The mapping is the caller's.
    [[nodiscard]] Result<Mapping> map() const;

    /// The others that are there, ascending.
    [[nodiscard]] std::vector<std::uint32_t> peers() const;
    [[nodiscard]] bool is_present(std::uint32_t peer) const;
    /// Odd while the slot is held; another number is another holder.
    [[nodiscard]] std::uint32_t tenancy(std::uint32_t peer) const;
    /// Counts all changes of who is there.
    [[nodiscard]] std::uint64_t presence_changes() const;

    /// With stable ids also a peer that is not there: the kick waits for the slot's next holder.
    [[nodiscard]] Result<void> ring(std::uint32_t peer, std::uint32_t vector);
    /// Takes the kicks of those vectors. Empty when the time passes first.
    [[nodiscard]] Result<WaitOutcome> wait(const WaitOptions& options);
    /// Waits until the peer is there and, with an offset, until the 32-bit word at that place of the share is not 0: a
    /// receiver writes 0 there first of all, and 1 when it listens. False when the time passes first.
    [[nodiscard]] Result<bool> wait_ready(std::uint32_t peer, std::optional<std::uint64_t> word_at_bytes,
                                          int timeout_ms);
    /// Takes what there is to know without waiting, and attaches again where that is due.
    [[nodiscard]] Result<SessionChanges> refresh();
    /// The notices since the last time; `has_lost` when older ones were dropped.
    [[nodiscard]] std::vector<PeerNotice> take_notices(bool& has_lost);

    /// Attaches again at once, whether the session is lost or not.
    [[nodiscard]] Result<void> reattach();
    [[nodiscard]] bool is_lost() const;
    [[nodiscard]] std::uint64_t generation() const;
    [[nodiscard]] std::uint64_t memory_generation() const;

    /// Readable while that vector has kicks; not open for a vector that is not there. Valid for this generation.
    [[nodiscard]] FdView vector_view(std::uint32_t vector) const;
    /// Another descriptor of the same, which outlives this generation.
    [[nodiscard]] Result<Fd> duplicate_vector(std::uint32_t vector) const;
    /// What a write of 1 rings that peer by, for whoever hands it to the kernel; not open where ring() is an error. The
    /// peer's id need not be there. Valid for this generation.
    [[nodiscard]] FdView doorbell_view(std::uint32_t peer, std::uint32_t vector) const;
    /// The ids that have doorbells, ascending, the own one among them.
    [[nodiscard]] std::vector<std::uint32_t> doorbell_peers() const;
    /// Readable when who is there changed, or the service went: refresh() says which.
    [[nodiscard]] FdView changes_view() const;
    /// Readable for any of these. Not open when the kernel has no room for the set that the first call makes.
    [[nodiscard]] FdView view() const;

    /// Who rang whom, on shares of at most max_senders slots; nullptr on others and for who may not notify. Of the
    /// last attach.
    [[nodiscard]] SenderPages* senders();
    /// Who rang this session since the last time: those who count in their pages and, with `hears_senders`, those who
    /// do not, whose kicks a wait has taken. Each is told once.
    [[nodiscard]] SenderSet take_senders();

private:
    struct State;
    explicit Session(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

}  // namespace guestmem::share
