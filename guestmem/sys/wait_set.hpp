// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <poll.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// Many descriptors seen as one: it is readable while at least one of them is.
///
/// Concepts: a library that waits for several things offers its caller one descriptor for the caller's own poll(2)
/// or epoll(7), and needs no thread and no callback for it. A set may be a member of another set.
/// Contract: a member counts as readable when it is, and when its other end hung up. A member is removed before it is
/// closed: where others hold the same open file the kernel would go on to report it, and nobody could remove it.
/// Which member it is, a PollList tells.
/// Lifetime: a set that is destroyed leaves the sets that it is in, as long as its descriptor was not duplicated.
/// Threads: any.
/// Cost: one system call a change; none when members become readable, but the one who makes a member readable pays for
/// each set around it (0.15 us a set beside 3 us of a kick).
/// Limits: the kernel nests sets at most four deep.

namespace guestmem {

class WaitSet {
public:
    WaitSet() = default;
    [[nodiscard]] static Result<WaitSet> create();

    [[nodiscard]] Result<void> add(FdView fd) const;
    /// No member: nothing happens.
    void remove(FdView fd) const noexcept;

    [[nodiscard]] FdView view() const { return fd_.view(); }

private:
    explicit WaitSet(Fd fd) : fd_(std::move(fd)) {}
    Fd fd_;
};

/// Descriptors in an order, for one who waits again and again: which of them are readable.
///
/// Contract: holds no descriptor; who closes one takes it out before the next wait. A hang-up counts as readable.
/// Threads: one at a time.
/// Cost: one system call a wait; a list that was as long before does not allocate.
class PollList {
public:
    void clear() { entries_.clear(); }
    /// A closed one has an index, and is never ready.
    void add(FdView fd) { entries_.push_back({.fd = fd.number(), .events = POLLIN, .revents = 0}); }

    /// How many are ready; 0 when `timeout_ms` passed first (-1: never).
    [[nodiscard]] Result<std::size_t> wait(int timeout_ms);
    /// As the last wait has found it; false beyond the last.
    [[nodiscard]] bool is_ready(std::size_t index) const {
        return index < entries_.size() && entries_[index].revents != 0;
    }

private:
    std::vector<pollfd> entries_;
};

/// Milliseconds since the machine started, at the kernel's last tick: up to 10 late, and six times as fast to read as
/// the exact clock.
[[nodiscard]] std::int64_t tick_ms();

}  // namespace guestmem
