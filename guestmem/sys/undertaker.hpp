// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string_view>

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
/// threads that still wait then end with the process. Where there is no thread to be had it waits for one until the
/// next burial.
/// A burial is on account of a party: whoever its owner holds answerable, a user or a door. Where a party has no room
/// the owner takes no new connections of it; a party of whom nothing waits always has room, so nobody waits for what
/// another one sent.
/// Limits: the owner keeps them: max_burials_of_party threads for a party, and max_burials in all, above which there
/// is one more for each party that had none.
/// Threads: the owner's loop.
/// Cost: one system call for a socket with nothing unread.

namespace guestmem {

inline constexpr std::size_t max_burials = 64;
inline constexpr std::size_t max_burials_of_party = 8;

class Undertaker {
public:
    [[nodiscard]] static Result<Undertaker> create(EventLoop& loop);
    Undertaker(Undertaker&&) noexcept;
    Undertaker& operator=(Undertaker&&) noexcept;
    ~Undertaker();

    /// False when it was closed before this returned.
    bool bury(UnixStream stream, std::string_view party = {}, std::function<void()> on_closed = [] {});
    [[nodiscard]] bool has_room(std::string_view party) const;
    /// For an owner that tells no parties apart.
    [[nodiscard]] bool is_full() const { return count_waiting() >= max_burials; }
    [[nodiscard]] std::size_t count_waiting() const;
    [[nodiscard]] std::size_t count_waiting(std::string_view party) const;

private:
    void bury_the_rest();

    struct State;
    explicit Undertaker(std::shared_ptr<State> state);
    std::shared_ptr<State> state_;
};

}  // namespace guestmem
