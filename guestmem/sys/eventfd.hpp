// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <utility>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// A doorbell: the kernel's counter that one side adds to and the other drains.
///
/// Contract: nothing here waits on a counter, whatever its other holders do to it. The O_NONBLOCK flag is no help:
/// it belongs to the open file, and every holder may clear it. Draining asks the kernel not to wait for this one
/// read (RWF_NOWAIT), where the kernel knows the flag (5.8 and later). Ringing looks first, and takes a full
/// counter (2^64-2 kicks that nobody took) as rung.
/// Limits: between the look and the write of ring() a holder could fill the counter and make it wait, and kick() does
/// not look at all; whoever must be safe from that rings through a Ringer.
/// Cost: ring() two system calls, kick() and drain() one, wait() two when there is a kick; none allocates.
/// Threads: any.

namespace guestmem {

class EventFd {
public:
    EventFd() = default;
    [[nodiscard]] static Result<EventFd> create();
    /// Believes a descriptor that came from outside only when the kernel says that it is an eventfd.
    [[nodiscard]] static Result<EventFd> adopt(Fd fd);
    /// One of our own that came back to us: nobody is asked.
    [[nodiscard]] static EventFd believe(Fd fd) { return EventFd{std::move(fd)}; }

    [[nodiscard]] Result<void> ring() const;
    /// The same by one system call, for holders that are trusted not to fill their counter and make it blocking. A
    /// full counter that is not blocking is as good as rung here, too.
    [[nodiscard]] Result<void> kick() const;
    /// Takes all kicks and says how many there were; 0 when none.
    [[nodiscard]] Result<std::uint64_t> drain() const;
    /// The same, when the first comes within `timeout_ms` (-1: for ever).
    [[nodiscard]] Result<std::uint64_t> wait(int timeout_ms) const;
    /// How many kicks wait, without taking them (from /proc/self/fdinfo).
    [[nodiscard]] Result<std::uint64_t> pending() const;

    /// A second descriptor of the same counter.
    [[nodiscard]] Result<Fd> duplicate() const { return fd_.duplicate(); }
    [[nodiscard]] FdView view() const { return fd_.view(); }

private:
    explicit EventFd(Fd fd) : fd_(std::move(fd)) {}
    Fd fd_;
};

/// Rings eventfds whose other holders are not trusted.
///
/// Contract: ring() never waits, not even on a counter that its holder filled and made blocking: the kernel
/// itself adds the kick, as the completion of an asynchronous read of /dev/null (io_submit with a result eventfd),
/// and an eventfd's own signal neither waits nor overflows.
/// Limits: where the kernel has no such calls (CONFIG_AIO, some emulators), is_certain() is false and ring() is
/// EventFd::ring().
/// Threads: one at a time. Cost: two system calls.
class Ringer {
public:
    [[nodiscard]] static Result<Ringer> create();
    /// The same, but the kernel is asked for what it takes at the first ring: a process that has that is some 30 ms
    /// late to die. Where the kernel refuses then, ring() is EventFd::ring().
    [[nodiscard]] static Result<Ringer> create_deferred();
    Ringer(Ringer&& other) noexcept
        : null_(std::move(other.null_)),
          context_(std::exchange(other.context_, 0)),
          is_deferred_(other.is_deferred_) {}
    Ringer& operator=(Ringer&& other) noexcept {
        std::swap(null_, other.null_);
        std::swap(context_, other.context_);
        std::swap(is_deferred_, other.is_deferred_);
        return *this;
    }
    Ringer(const Ringer&) = delete;
    Ringer& operator=(const Ringer&) = delete;
    ~Ringer();

    [[nodiscard]] bool is_certain() const { return context_ != 0; }
    [[nodiscard]] Result<void> ring(const EventFd& bell);

private:
    Ringer(Fd null, unsigned long context) : null_(std::move(null)), context_(context) {}
    Fd null_;
    unsigned long context_ = 0;
    bool is_deferred_ = false;
};

}  // namespace guestmem
