// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"

/// The share service's calls on the control protocol, as types: what the tools ask and what they get.
/// docs/protocols/control.md is the specification.
///
/// Contract: parse_* take any JSON object and never abort or throw; a missing or wrong field is an error that
/// names it. Fields that this version does not know are passed over.
/// Threads: any.

namespace guestmem::share {

/// The argument of share.stat and share.memory.
struct NamedCall {
    std::string share;
    bool has_presence = false;  ///< of share.memory: the presence pages, too
};

/// The argument of share.attach. Without `is_session` the other fields mean nothing.
struct AttachCall {
    std::string share;
    bool is_session = false;
    bool may_create = false;
    bool is_read_only = false;
    std::optional<std::uint64_t> size_bytes = {};  ///< of a share that this call makes
    std::optional<std::uint32_t> vectors = {};     ///< the same
    std::optional<std::uint32_t> slots = {};       ///< the same
    std::optional<std::uint32_t> slot = {};        ///< the one that is wanted
    bool hears_senders = false;  ///< wants to be told apart who rings without counting (pair_bells.hpp)
    bool counts_rings = true;    ///< counts in its sender page what it rings
    bool takes_batches = false;  ///< its first messages may come together
};

/// The argument of share.hold.
struct HoldCall {
    std::string share;
    bool may_create = false;
    std::optional<std::uint64_t> size_bytes = {};  ///< of a share that this call makes
    std::optional<std::uint32_t> vectors = {};     ///< the same
    std::optional<std::uint32_t> slots = {};       ///< the same
};

struct RingCall {
    std::string share;
    std::optional<std::uint32_t> peer;  ///< nothing: all
    std::uint32_t vector = 0;
};

struct ShareSummary {
    std::string name;
    std::uint64_t size_bytes = 0;
    std::uint64_t extent_bytes = 0;
    std::uint32_t vectors = 0;
    std::uint32_t slots = 0;
    std::string ids;
    std::uint32_t count_peers = 0;
    std::uint32_t count_holders = 0;  ///< who keep it alive without a place in it
    std::string origin = "file";      ///< "file", or "dynamic": made by a client
    std::string maker = {};           ///< of a dynamic one: the VM; empty: the host
    std::string backing = "memfd";    ///< "memfd", "file", "shm"
    std::string stage =
        "ready";  ///< "ready", "blank": gets pages or is cleared, "retired": takes no newcomers
    bool is_kept = false;
};

struct PeerStatus {
    std::uint32_t slot = 0;
    std::string vm;
    std::int32_t pid = 0;
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    bool is_joined = false;
    bool is_tool = false;
    bool may_notify = true;
    bool is_read_only = false;
    bool is_revoked = false;
    /// Read-only, and yet it could re-open the memory writable: of the owner's uid, or root.
    bool can_bypass_read_only = false;
};

struct DoorStatus {
    std::string path;
    std::string vm;
    std::vector<std::uint32_t> slots;
};

struct PendingKicks {
    std::uint32_t slot = 0;
    std::vector<std::uint64_t> per_vector;
};

struct ShareStatus {
    ShareSummary summary;
    std::vector<std::string> seals;
    std::vector<DoorStatus> doors;
    std::vector<PeerStatus> peers;
    std::vector<PendingKicks> pending;  ///< every slot (classic ids: every peer)
};

struct ServiceSummary {
    std::int32_t pid = 0;
    std::uint32_t generation = 1;  ///< how many instances have served these shares
    std::string keeper = {};       ///< who holds their descriptors; empty: nobody
    std::vector<ShareSummary> shares;
};

struct MemoryReply {
    std::uint64_t size_bytes = 0;
    std::uint64_t extent_bytes = 0;
};

struct AttachReply {
    std::uint32_t slot = 0;
};

/// Of a session. Descriptors: the ivshmem stream, the presence pages, the bell; then, where `senders` is not 0, the own
/// sender page and those of the other slots in their order.
struct SessionReply {
    std::uint32_t slot = 0;
    std::uint64_t size_bytes = 0;
    std::uint64_t extent_bytes = 0;
    std::uint32_t vectors = 0;
    std::uint32_t slots = 0;
    std::uint32_t senders = 0;
    bool is_created = false;
    bool may_notify = true;
    bool is_read_only = false;
};

/// With the descriptor of the stream that holds the share until it is closed. On it comes the version message when the
/// memory is there, or a refusal.
struct HoldReply {
    std::uint64_t size_bytes = 0;
    std::uint64_t extent_bytes = 0;
    std::uint32_t slots = 0;
    bool is_created = false;
};

struct ReloadReply {
    std::vector<std::string> changes;
};

struct RingReply {
    std::vector<std::uint32_t> rung;
    std::vector<std::uint32_t> absent;  ///< rung too: the kick waits for the next holder
};

[[nodiscard]] Result<NamedCall> parse_named_call(std::string_view arguments);
[[nodiscard]] Result<AttachCall> parse_attach_call(std::string_view arguments);
[[nodiscard]] Result<HoldCall> parse_hold_call(std::string_view arguments);
[[nodiscard]] Result<HoldReply> parse_hold_reply(std::string_view result);
[[nodiscard]] Result<RingCall> parse_ring_call(std::string_view arguments);
[[nodiscard]] Result<ServiceSummary> parse_service_summary(std::string_view result);
[[nodiscard]] Result<ShareStatus> parse_share_status(std::string_view result);
[[nodiscard]] Result<MemoryReply> parse_memory_reply(std::string_view result);
[[nodiscard]] Result<AttachReply> parse_attach_reply(std::string_view result);
[[nodiscard]] Result<SessionReply> parse_session_reply(std::string_view result);
[[nodiscard]] Result<ReloadReply> parse_reload_reply(std::string_view result);
[[nodiscard]] Result<RingReply> parse_ring_reply(std::string_view result);

[[nodiscard]] std::string to_json(const NamedCall& call);
[[nodiscard]] std::string to_json(const AttachCall& call);
[[nodiscard]] std::string to_json(const HoldCall& call);
[[nodiscard]] std::string to_json(const HoldReply& reply);
[[nodiscard]] std::string to_json(const RingCall& call);
[[nodiscard]] std::string to_json(const ServiceSummary& summary);
[[nodiscard]] std::string to_json(const ShareStatus& status);
[[nodiscard]] std::string to_json(const MemoryReply& reply);
[[nodiscard]] std::string to_json(const AttachReply& reply);
[[nodiscard]] std::string to_json(const SessionReply& reply);
[[nodiscard]] std::string to_json(const ReloadReply& reply);
[[nodiscard]] std::string to_json(const RingReply& reply);

}  // namespace guestmem::share
