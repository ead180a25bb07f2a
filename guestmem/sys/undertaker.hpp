// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/event_loop.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// Closes connections whose closing may block.
///
/// Concepts: what a peer sent and nobody read is freed by whoever closes the socket. A descriptor among it whose last
/// close waits (a TCP socket with SO_LINGER, a file of a FUSE server) makes that close wait, for as long as the peer
/// likes. The loop of a service therefore never takes descriptors that a peer sends, and never closes a socket
/// with one unread in it: it hands such a socket over.
/// Contract: bury() closes at once when no descriptor is unread, else in a thread of its own; `on_closed` is
/// called in the loop's thread when it is done, at once or later. Nothing is called after the undertaker is gone;
/// threads that still wait then end with the process.
/// Limits: max_burials threads; at is_full() the caller takes no new connections from where they come.
/// Threads: the owner's loop.
/// Cost: one system call for a socket with nothing unread.

namespace guestmem {

inline constexpr std::size_t max_burials = 64;

class Undertaker {
public:
    [[nodiscard]] static Result<Undertaker> create(EventLoop& loop);
    Undertaker(Undertaker&&) noexcept;
    Undertaker& operator=(Undertaker&&) noexcept;
    ~Undertaker();

    void bury(UnixStream stream, std::function<void()> on_closed = [] {});
    [[nodiscard]] bool is_full() const;
    [[nodiscard]] std::size_t count_waiting() const;

private:
    struct State;
    explicit Undertaker(std::shared_ptr<State> state);
    std::shared_ptr<State> state_;
};

}  // namespace guestmem
