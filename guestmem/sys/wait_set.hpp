// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// Many descriptors seen as one: it is readable while at least one of them is.
///
/// Concepts: a library that waits for several things offers its caller one descriptor for the caller's own poll(2)
/// or epoll(7), and needs no thread and no callback for it. A set may be a member of another set.
/// Contract: a member counts as readable when it is, and when its other end hung up. A member is removed before it is
/// closed: where others hold the same open file the kernel would go on to report it, and nobody could remove it.
/// Which member it is, poll_readable() tells.
/// Lifetime: a set that is destroyed leaves the sets that it is in, as long as its descriptor was not duplicated.
/// Threads: any.
/// Cost: one system call a change; none when members become readable.
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

}  // namespace guestmem
