// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/wait_set.hpp"

#include <sys/epoll.h>

#include <ctime>

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

Result<std::size_t> PollList::wait(int timeout_ms) {
    const int count = checked_call(SysCall::poll, [&] {
        // poll(2) passes over negative descriptors.
        return ::poll(entries_.data(), entries_.size(), timeout_ms);
    });
    if (count < 0) return Error::from_errno(errno, "wait on descriptors");
    return static_cast<std::size_t>(count);
}

std::int64_t tick_ms() {
    timespec at{};
    ::clock_gettime(CLOCK_MONOTONIC_COARSE, &at);
    return std::int64_t{at.tv_sec} * 1000 + at.tv_nsec / 1'000'000;
}

}  // namespace guestmem
