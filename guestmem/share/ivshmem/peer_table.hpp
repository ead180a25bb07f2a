// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/fd.hpp"

/// What an ivshmem client has been told: its id, the memory, the doorbells of everybody. Turns the server's
/// messages into types; the border where a server's bytes enter a client.
///
/// Contract: take() accepts any value with or without a descriptor; what the protocol does not allow at this
/// point is an error that says what came and what belongs there. A descriptor is owned from the first moment and
/// closed when it is refused. Descriptors that pose as doorbells are asked whether they are eventfds.
/// Limits: max_table_doorbells in all; an id is at most ivshmem_max_peer_id, a caller's below max_senders.
/// Threads: one at a time.

namespace guestmem::share {

inline constexpr std::size_t max_table_doorbells = 16'384;

enum class NoticeKind : std::uint8_t { version, own_id, memory, doorbell, gone, caller, caller_over };

struct Notice {
    NoticeKind kind = NoticeKind::version;
    std::uint32_t id = 0;
    std::uint32_t vector = 0;
};

/// The doorbells of a sender that are over: kicks may still be in them.
struct PastCaller {
    std::uint32_t id = 0;
    std::vector<EventFd> bells;
};

class PeerTable {
public:
    [[nodiscard]] Result<Notice> take(std::int64_t value, std::optional<Fd> fd);

    /// This client asked to hear senders apart: messages about callers are understood.
    void expect_callers() { has_callers_ = true; }
    /// By sender: the doorbells by which it alone rings this client.
    [[nodiscard]] const std::map<std::uint32_t, std::vector<EventFd>>& callers() const { return callers_; }
    /// Those that are over since the last time.
    [[nodiscard]] std::vector<PastCaller> take_past_callers();

    [[nodiscard]] std::optional<std::uint32_t> own_id() const { return own_id_; }
    [[nodiscard]] const Fd& memory() const { return memory_; }
    /// Doorbells by id, the own ones included; in the order of the vectors.
    [[nodiscard]] const std::map<std::uint32_t, std::vector<EventFd>>& doorbells() const {
        return doorbells_;
    }
    [[nodiscard]] const std::vector<EventFd>* find(std::uint32_t id) const;

private:
    [[nodiscard]] Result<Notice> take_version(std::int64_t value, bool has_fd);
    [[nodiscard]] Result<Notice> take_own_id(std::int64_t value, bool has_fd);
    [[nodiscard]] Result<Notice> take_memory(std::int64_t value, std::optional<Fd> fd);
    [[nodiscard]] Result<Notice> take_peer(std::int64_t value, std::optional<Fd> fd);

    [[nodiscard]] Result<Notice> take_caller(std::int64_t value, std::optional<Fd> fd);
    [[nodiscard]] Result<EventFd> adopt_bell(Fd fd, std::uint32_t id) const;
    void end_caller(std::uint32_t id);

    bool has_version_ = false;
    bool has_callers_ = false;
    std::optional<std::uint32_t> own_id_;
    Fd memory_;
    std::map<std::uint32_t, std::vector<EventFd>> doorbells_;
    std::map<std::uint32_t, std::vector<EventFd>> callers_;
    std::vector<PastCaller> past_callers_;
    std::size_t count_doorbells_ = 0;  ///< of both, and of callers that are past
};

}  // namespace guestmem::share
