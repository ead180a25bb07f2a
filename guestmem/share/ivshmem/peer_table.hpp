// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
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
/// Limits: max_table_doorbells in all; an id is at most ivshmem_max_peer_id.
/// Threads: one at a time.

namespace guestmem::share {

inline constexpr std::size_t max_table_doorbells = 16'384;

enum class NoticeKind : std::uint8_t { version, own_id, memory, doorbell, gone };

struct Notice {
    NoticeKind kind = NoticeKind::version;
    std::uint32_t id = 0;
    std::uint32_t vector = 0;
};

class PeerTable {
public:
    [[nodiscard]] Result<Notice> take(std::int64_t value, std::optional<Fd> fd);

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

    bool has_version_ = false;
    std::optional<std::uint32_t> own_id_;
    Fd memory_;
    std::map<std::uint32_t, std::vector<EventFd>> doorbells_;
    std::size_t count_doorbells_ = 0;
};

}  // namespace guestmem::share
