// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// One thread that waits for many things: sockets, timers, signals; epoll and signalfd with owners
/// (docs/decisions/0003-own-event-loop.md says why no library's).
///
/// Concepts: an EventSource is one thing waited for; when it is destroyed the waiting ends. A source may be
/// destroyed inside its own handler, or inside another's.
/// Contract: handlers run in the loop's thread, one at a time, and do not block. A descriptor outlives its
/// source. The loop outlives its sources. What a handler throws ends the loop, and run() throws it again.
/// Threads: the owner's loop.
/// Cost: one epoll_wait per batch, two heap blocks per source. A timer needs no descriptor; it is late by up to 1 ms.

namespace guestmem {

enum class IoEvents : std::uint8_t {
    none = 0,  ///< the source rests: not even a hang-up is told
    readable = 1,
    writable = 2,
    both = 3,
    /// Both, told once per change: the handler writes until it would block and takes what is readable. For many
    /// that wait for room at once: one that stays ready costs a look in every turn, so that a thousand of them
    /// make each turn a thousand looks.
    both_on_change = 7,
};
[[nodiscard]] constexpr bool has_any(IoEvents events, IoEvents wanted) {
    return (static_cast<unsigned>(events) & static_cast<unsigned>(wanted)) != 0;
}

/// Which of several ready descriptors comes first. A `late` one is served when no other is ready, and only after
/// the kernel was asked again: what happened before it is seen before it. Where something else is ready in each of
/// max_rounds_without_late rounds in a row, one late descriptor is served in spite of it: a peer that keeps a
/// descriptor ready does not shut out the others.
enum class Turn : std::uint8_t { normal, late };
inline constexpr int max_rounds_without_late = 64;

namespace detail {
struct LoopState;
struct SourceState;
}  // namespace detail

class EventSource {
public:
    EventSource();
    EventSource(EventSource&&) noexcept;
    EventSource& operator=(EventSource&&) noexcept;
    ~EventSource();

    [[nodiscard]] bool is_active() const { return state_ != nullptr; }
    /// For a descriptor's source: what to wait for from here on.
    [[nodiscard]] Result<void> set_events(IoEvents events);
    /// For a timer's source: fires once more, that long from here.
    [[nodiscard]] Result<void> restart(std::uint64_t delay_ms);

private:
    friend class EventLoop;
    explicit EventSource(std::unique_ptr<detail::SourceState> state);
    std::unique_ptr<detail::SourceState> state_;
};

class EventLoop {
public:
    [[nodiscard]] static Result<EventLoop> create();
    EventLoop(EventLoop&&) noexcept;
    EventLoop& operator=(EventLoop&&) noexcept;
    ~EventLoop();

    /// Calls `handler` while the descriptor is readable or writable, as asked. A hang-up or an error of the
    /// other end arrives as readable: the next receive says what it is. While the events are `none` it waits.
    [[nodiscard]] Result<EventSource> add_io(FdView fd, IoEvents events,
                                             std::function<void(IoEvents)> handler, Turn turn = Turn::normal);
    /// Calls `handler` once, `delay_ms` from here; restart() for the next time.
    [[nodiscard]] Result<EventSource> add_timer(std::uint64_t delay_ms, std::function<void()> handler);
    /// Calls `handler` when the signal arrives. The signal must be blocked in every thread: block_signal().
    [[nodiscard]] Result<EventSource> add_signal(int signal, std::function<void()> handler);

    /// Runs handlers until stop() is called.
    [[nodiscard]] Result<void> run();
    /// Runs the handlers of what is ready, waiting at most `timeout_ms` for the first.
    [[nodiscard]] Result<void> run_once(std::uint64_t timeout_ms);
    /// Ends run() after the handler that calls this.
    void stop();

    /// Milliseconds of the monotonic clock at the start of this round.
    [[nodiscard]] std::uint64_t now_ms() const;

private:
    explicit EventLoop(std::unique_ptr<detail::LoopState> state);
    std::unique_ptr<detail::LoopState> state_;
};

/// Blocks a signal for the calling thread and the threads it makes later; for programs, not for libraries.
[[nodiscard]] Result<void> block_signal(int signal);

}  // namespace guestmem
