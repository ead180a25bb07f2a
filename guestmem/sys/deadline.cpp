// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/deadline.hpp"

#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <limits>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

Result<bool> wait_for(FdView fd, short events, const Deadline& deadline) {
    pollfd entry{.fd = fd.number(), .events = events, .revents = 0};
    for (;;) {
        // A call that a signal interrupts is repeated: what is left is asked for again each time.
        const int count = checked_call(SysCall::poll, [&] {
            const std::int64_t left =
                std::min<std::int64_t>(deadline.left().count(), std::numeric_limits<int>::max());
            return ::poll(&entry, 1, static_cast<int>(left));
        });
        if (count < 0) return Error::from_errno(errno, "wait on a descriptor");
        if (count > 0) return true;
        if (deadline.has_passed()) return false;
    }
}

}  // namespace

Deadline::Deadline(std::chrono::milliseconds from_here)
    : at_(std::chrono::steady_clock::now() +
          std::clamp<std::chrono::milliseconds>(from_here, -farthest, farthest)) {}

std::chrono::milliseconds Deadline::left() const {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(at_ - std::chrono::steady_clock::now());
    return std::max(left, std::chrono::milliseconds{0});
}

void Deadline::extend(std::chrono::steady_clock::duration by) {
    using Duration = std::chrono::steady_clock::duration;
    const auto latest = std::chrono::steady_clock::now() + farthest;
    at_ = std::max(at_, std::min(at_ + std::clamp<Duration>(by, Duration::zero(), farthest), latest));
}

Result<bool> wait_readable(FdView fd, const Deadline& deadline) { return wait_for(fd, POLLIN, deadline); }
Result<bool> wait_writable(FdView fd, const Deadline& deadline) { return wait_for(fd, POLLOUT, deadline); }

}  // namespace guestmem
