// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/share/ivshmem/peer_table.hpp"
#include "guestmem/share/ivshmem/wire.hpp"
#include "guestmem/sys/mapping.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// An ivshmem client on the host: joins a share, maps it, rings and is rung. Speaks to this project's service and
/// to every other server of protocol version 0.
///
/// Concepts: the protocol has no end of the handshake and no number of vectors; join() takes the number from who
/// knows it (the control socket) and returns when that many own doorbells are there.
/// Contract: a refusal of the server is an error with its errno. Memory that others can shrink is not mapped:
/// map() asks for the seals first.
/// Threads: one at a time.
/// Cost: ring() is one system call, wait() two when it was rung; neither allocates.
/// Known holes: a peer that made its own doorbell blocking and filled its counter (2^64-2 kicks) makes ring() wait for
/// it. Who has such peers attaches as a Session with RingStyle::never_waits.
/// Example: examples/ring.cpp.

namespace guestmem::share {

class Client {
public:
    [[nodiscard]] static Result<Client> connect(const std::string& path);
    /// On a connection that came from elsewhere, as share.attach gives one.
    [[nodiscard]] static Result<Client> adopt(Fd stream);

    /// One message, when one comes within `timeout_ms` (-1: for ever); nothing when none does.
    [[nodiscard]] Result<std::optional<Notice>> receive(int timeout_ms);
    /// The same for the first messages of a session, which may come many together: takes as many as there are, and
    /// gives one. Each but the first two has a descriptor.
    [[nodiscard]] Result<std::optional<Notice>> receive_ahead(int timeout_ms);
    /// Messages were taken that nobody has asked for yet: the next receive() gives one without a wait.
    [[nodiscard]] bool has_more() const { return ahead_.size() >= ivshmem_message_bytes; }
    /// Receives until `vectors` own doorbells are there.
    [[nodiscard]] Result<void> join(std::uint32_t vectors, int timeout_ms);

    [[nodiscard]] Result<void> ring(std::uint32_t peer, std::uint32_t vector) const;
    /// The kicks on an own vector, waiting at most `timeout_ms` for the first; 0 when none comes.
    [[nodiscard]] Result<std::uint64_t> wait(std::uint32_t vector, int timeout_ms) const;
    /// The memory whole, its extent.
    [[nodiscard]] Result<Mapping> map(MapAccess access) const;

    /// The server has closed the connection. Drops what has come and was not asked for: for who awaits nothing more.
    [[nodiscard]] Result<bool> has_ended() const;
    [[nodiscard]] const PeerTable& table() const { return table_; }
    [[nodiscard]] PeerTable& table() { return table_; }
    [[nodiscard]] FdView view() const { return stream_.view(); }

private:
    explicit Client(UnixStream stream) : stream_(std::move(stream)) {}

    [[nodiscard]] Result<Notice> take_ahead();

    UnixStream stream_;
    PeerTable table_;
    std::deque<std::byte> ahead_;  ///< taken from the stream
    std::deque<Fd> ahead_fds_;     ///< theirs, in order
};

/// Maps memory that came from a service, after asking whether its size can still change.
[[nodiscard]] Result<Mapping> map_sealed(FdView memory, MapAccess access);

}  // namespace guestmem::share
