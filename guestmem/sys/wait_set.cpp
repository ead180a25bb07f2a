// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/wait_set.hpp"

#include <sys/epoll.h>

#include "guestmem/sys/faults.hpp"

namespace guestmem {

Result<WaitSet> WaitSet::create() {
    Fd fd{checked_call(SysCall::event_loop, [] { return ::epoll_create1(EPOLL_CLOEXEC); })};
    if (!fd.is_open()) return Error::from_errno(errno, "make a set of descriptors to wait for");
    return WaitSet{std::move(fd)};
}

Result<void> WaitSet::add(FdView fd) const {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLRDHUP;
    const int status = checked_call(SysCall::event_loop, [&] {
        return ::epoll_ctl(fd_.view().number(), EPOLL_CTL_ADD, fd.number(), &event);
    });
    if (status < 0) return Error::from_errno(errno, "add a descriptor to those that are waited for");
    return {};
}

void WaitSet::remove(FdView fd) const noexcept {
    // Releasing does not fail: what is no member is none after.
    if (fd.is_open()) ::epoll_ctl(fd_.view().number(), EPOLL_CTL_DEL, fd.number(), nullptr);
}

}  // namespace guestmem
