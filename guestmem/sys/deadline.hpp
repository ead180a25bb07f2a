// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// Waiting on a descriptor until a moment, not for a while: many waits that have one limit in all.
///
/// Concepts: a Deadline is a moment of the monotonic clock. Who reads a message in many pieces waits for each of them
/// until the same moment, so that a byte a second does not make the whole last for ever.
/// What the waiting side does between two waits can be given back to the other side: extend().
/// Contract: signals that interrupt a wait do not make it longer. A hang-up counts as readable and as writable.
/// Threads: any.
/// Example:
///     const Deadline deadline{std::chrono::seconds{2}};
///     while (wanted > 0) {
///         if (!GM_TRY(wait_readable(fd, deadline))) return Error{Errc::timed_out, "..."};
///         wanted -= GM_TRY(read_some(fd, buffer));
///     }

namespace guestmem {

class Deadline {
public:
    /// More than `farthest` is as far as that.
    explicit Deadline(std::chrono::milliseconds from_here);
    static constexpr std::chrono::hours farthest{24 * 365 * 50};

    /// Rounded up, and never below 0.
    [[nodiscard]] std::chrono::milliseconds left() const;
    [[nodiscard]] bool has_passed() const { return left().count() == 0; }

    /// Later by so much, `farthest` from here at most; never earlier. For time that went by on the waiting side.
    void extend(std::chrono::steady_clock::duration by);

private:
    std::chrono::steady_clock::time_point at_;
};

/// False when the deadline passes first. What is readable at once is told after the deadline, too.
[[nodiscard]] Result<bool> wait_readable(FdView fd, const Deadline& deadline);
[[nodiscard]] Result<bool> wait_writable(FdView fd, const Deadline& deadline);

}  // namespace guestmem
