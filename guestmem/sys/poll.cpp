// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/poll.hpp"

#include <poll.h>

#include "guestmem/sys/faults.hpp"

namespace guestmem {

Result<bool> poll_readable(FdView fd, int timeout_ms) {
    const auto ready = GM_TRY(poll_readable(std::span{&fd, 1}, timeout_ms));
    return !ready.empty();
}

Result<std::vector<std::size_t>> poll_readable(std::span<const FdView> fds, int timeout_ms) {
    std::vector<pollfd> entries;
    entries.reserve(fds.size());
    // poll(2) passes over negative descriptors.
    for (const FdView fd : fds) entries.push_back({.fd = fd.number(), .events = POLLIN, .revents = 0});
    const int count =
        checked_call(SysCall::poll, [&] { return ::poll(entries.data(), entries.size(), timeout_ms); });
    if (count < 0) return Error::from_errno(errno, "wait on descriptors");
    std::vector<std::size_t> ready;
    for (std::size_t i = 0; i < entries.size(); ++i)
        if (entries[i].revents != 0) ready.push_back(i);
    return ready;
}

}  // namespace guestmem
