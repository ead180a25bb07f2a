// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/event_loop.hpp"

#include <fmt/format.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace detail {

using Clock = std::chrono::steady_clock;

/// The handlers stand in shared blocks: a handler that destroys its own source must outlive the call.
struct Handlers {
    std::function<void(IoEvents)> on_io;
    std::function<void()> on_event;
};

struct LoopState {
    Fd epoll;
    /// What the kernel names is looked up here: a source may be gone by the time its turn comes.
    std::unordered_map<std::uint64_t, SourceState*> sources;
    std::multimap<Clock::time_point, SourceState*> timers;
    std::deque<std::uint64_t> late;  ///< ready, and waiting for a moment when no other is
    int rounds_without_late = 0;     ///< in a row, while one waited
    std::uint64_t next_number = 0;
    Clock::time_point round{};  ///< when it began
    bool is_stopped = false;
};

struct SourceState {
    explicit SourceState(LoopState& owner) : loop(&owner), number(owner.next_number++) {}
    SourceState(const SourceState&) = delete;
    SourceState& operator=(const SourceState&) = delete;
    ~SourceState() {
        stop_timer();
        if (!fd) return;
        // One that rests is not the kernel's: the descriptor may be another source's there.
        if (is_watched) ::epoll_ctl(loop->epoll.view().number(), EPOLL_CTL_DEL, fd->number(), nullptr);
        // The line is never longer than the loop has sources.
        if (is_in_line) std::erase(loop->late, number);
        loop->sources.erase(number);
    }

    void start_timer(std::uint64_t delay_ms) {
        // Beyond that a clock of 64 bits has no time.
        constexpr std::uint64_t longest_ms = std::uint64_t{1} << 40;
        stop_timer();
        const std::chrono::milliseconds delay{std::min(delay_ms, longest_ms)};
        timer = loop->timers.emplace(Clock::now() + delay, this);
    }
    void stop_timer() {
        if (timer) loop->timers.erase(*std::exchange(timer, std::nullopt));
    }

    LoopState* loop;
    std::uint64_t number;
    std::shared_ptr<Handlers> handlers = std::make_shared<Handlers>();
    std::optional<FdView> fd;  ///< waited for
    bool is_watched = false;   ///< by the kernel; not while nothing is asked
    Fd signals;                ///< a signal's own descriptor
    Turn turn = Turn::normal;
    std::uint32_t waiting = 0;  ///< of a late one: what it is ready for
    bool is_in_line = false;    ///< of the late ones
    std::optional<std::multimap<Clock::time_point, SourceState*>::iterator> timer;
};

}  // namespace detail

namespace {

using detail::Clock;
using detail::LoopState;
using detail::SourceState;

constexpr std::size_t max_batch = 64;

/// What always works here can be pretended to fail, too: callers are ready for a loop that refuses.
template <typename Function>
int loop_call(Function&& function) {
    return checked_call(SysCall::event_loop, std::forward<Function>(function));
}

std::uint32_t to_epoll(IoEvents events) {
    return (has_any(events, IoEvents::readable) ? static_cast<std::uint32_t>(EPOLLIN) : 0U) |
           (has_any(events, IoEvents::writable) ? static_cast<std::uint32_t>(EPOLLOUT) : 0U) |
           (events == IoEvents::both_on_change ? static_cast<std::uint32_t>(EPOLLET) : 0U);
}

IoEvents from_epoll(std::uint32_t events) {
    const bool is_readable = (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0;
    const bool is_writable = (events & EPOLLOUT) != 0;
    return static_cast<IoEvents>((is_readable ? 1 : 0) | (is_writable ? 2 : 0));
}

int control(const SourceState& source, FdView fd, int operation, std::uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.u64 = source.number;
    return loop_call(
        [&] { return ::epoll_ctl(source.loop->epoll.view().number(), operation, fd.number(), &event); });
}

/// Changes what the kernel watches of a source that has a descriptor. It tells hang-ups whatever is asked, and again
/// in each round: where nothing is asked it does not watch.
int change_watch(SourceState& source, std::uint32_t events) {
    const bool is_wanted = events != 0;
    if (!is_wanted && !source.is_watched) return 0;
    const int operation = !is_wanted ? EPOLL_CTL_DEL : source.is_watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    const int status = control(source, *source.fd, operation, events);
    if (status == 0) source.is_watched = is_wanted;
    return status;
}

/// Has the loop wait for it; the source is the loop's from here on. One that rests is tried all the same: what cannot
/// be waited for is refused at once.
int watch(SourceState& source, FdView fd, std::uint32_t events) {
    if (const int status = control(source, fd, EPOLL_CTL_ADD, events); status < 0) return status;
    source.fd = fd;
    source.is_watched = true;
    source.loop->sources.emplace(source.number, &source);
    return events == 0 ? change_watch(source, events) : 0;
}

void dispatch(SourceState& source, std::uint32_t events) {
    const auto handlers = source.handlers;
    if (!source.signals.is_open()) return handlers->on_io(from_epoll(events));
    signalfd_siginfo info{};
    if (::read(source.signals.view().number(), &info, sizeof info) == sizeof info) handlers->on_event();
}

SourceState* find(const LoopState& loop, std::uint64_t number) {
    const auto found = loop.sources.find(number);
    return found == loop.sources.end() ? nullptr : found->second;
}

/// How long the kernel may wait: rounded up, so that no timer is early.
int wait_ms(const LoopState& loop, std::optional<std::uint64_t> limit_ms) {
    constexpr auto longest = static_cast<std::uint64_t>(std::numeric_limits<int>::max());
    if (!loop.timers.empty()) {
        const auto left = loop.timers.begin()->first - Clock::now();
        const auto left_ms = std::chrono::ceil<std::chrono::milliseconds>(left).count();
        const std::uint64_t until = left_ms < 0 ? 0 : static_cast<std::uint64_t>(left_ms);
        limit_ms = std::min(limit_ms.value_or(until), until);
    }
    return limit_ms ? static_cast<int>(std::min(*limit_ms, longest)) : -1;
}

/// Serves what the kernel names, but for the late ones, which are put in their line; whether any was served.
bool serve_ready(LoopState& loop, std::span<const epoll_event> ready) {
    bool has_served = false;
    for (const epoll_event& event : ready) {
        SourceState* const source = find(loop, event.data.u64);
        // Gone, or put to rest, by a handler of this batch.
        if (source == nullptr || !source->is_watched) continue;
        if (source->turn == Turn::late) {
            if (!std::exchange(source->is_in_line, true)) loop.late.push_back(source->number);
            source->waiting |= event.events;
            continue;
        }
        has_served = true;
        dispatch(*source, event.events);
        if (loop.is_stopped) break;
    }
    return has_served;
}

bool serve_timers(LoopState& loop) {
    bool has_served = false;
    // One that is started again in its handler has its turn in another round.
    const auto due = loop.timers.upper_bound(loop.round);
    auto left = std::distance(loop.timers.begin(), due);
    for (; left > 0 && !loop.is_stopped && !loop.timers.empty(); --left) {
        const auto first = loop.timers.begin();
        if (first->first > loop.round) break;
        SourceState& source = *first->second;
        source.stop_timer();
        const auto handlers = source.handlers;
        has_served = true;
        handlers->on_event();
    }
    return has_served;
}

void serve_late(LoopState& loop) {
    while (!loop.late.empty()) {
        SourceState* const source = find(loop, loop.late.front());
        loop.late.pop_front();
        if (source == nullptr) continue;
        source->is_in_line = false;
        const std::uint32_t events = std::exchange(source->waiting, 0);
        if (events == 0) continue;
        return dispatch(*source, events);
    }
}

Result<void> run_round(LoopState& loop, std::optional<std::uint64_t> limit_ms) {
    std::array<epoll_event, max_batch> ready{};
    // In so many batches each source has had its turn to be named: the kernel goes round. Then a late one is served,
    // even if the last batch was full of late ones, too.
    std::size_t batches_left = loop.sources.size() / max_batch + 1;
    while (!loop.is_stopped) {
        const bool has_late = !loop.late.empty();
        const int count =
            ::epoll_wait(loop.epoll.view().number(), ready.data(), static_cast<int>(ready.size()),
                         has_late ? 0 : wait_ms(loop, limit_ms));
        if (count < 0 && errno != EINTR) return Error::from_errno(errno, "wait for events");
        loop.round = Clock::now();
        const auto all = static_cast<std::size_t>(std::max(count, 0));
        bool has_served = serve_ready(loop, {ready.data(), all});
        if (loop.is_stopped) return {};
        has_served = serve_timers(loop) || has_served;
        if (loop.late.empty()) loop.rounds_without_late = 0;
        if (loop.is_stopped || loop.late.empty()) return {};
        if (has_served) {
            if (++loop.rounds_without_late < max_rounds_without_late) return {};
        } else if (!has_late || (all == max_batch && --batches_left > 0)) {
            continue;
        }
        loop.rounds_without_late = 0;
        serve_late(loop);
        return {};
    }
    return {};
}

}  // namespace

EventSource::EventSource() = default;
EventSource::EventSource(std::unique_ptr<detail::SourceState> state) : state_(std::move(state)) {}
EventSource::EventSource(EventSource&&) noexcept = default;
EventSource& EventSource::operator=(EventSource&&) noexcept = default;
EventSource::~EventSource() = default;

Result<void> EventSource::set_events(IoEvents events) {
    if (state_ == nullptr)
        return Error{Errc::unavailable, "a descriptor's source that is no more cannot wait for anything"};
    if (!state_->fd) return Error{Errc::invalid_argument, "a timer has no descriptor to wait for"};
    // What it was ready for counts no more: the kernel is asked again.
    state_->waiting = 0;
    if (change_watch(*state_, to_epoll(events)) < 0)
        return Error::from_errno(errno, "change what a descriptor waits for");
    return {};
}

Result<void> EventSource::restart(std::uint64_t delay_ms) {
    if (state_ == nullptr) return Error{Errc::unavailable, "a timer that is no more cannot be started again"};
    if (state_->fd) return Error{Errc::invalid_argument, "a descriptor's source is no timer to start again"};
    if (loop_call([] { return 0; }) < 0) return Error::from_errno(errno, "restart a timer");
    state_->start_timer(delay_ms);
    return {};
}

EventLoop::EventLoop(std::unique_ptr<detail::LoopState> state) : state_(std::move(state)) {}
EventLoop::EventLoop(EventLoop&&) noexcept = default;
EventLoop& EventLoop::operator=(EventLoop&&) noexcept = default;
EventLoop::~EventLoop() = default;

Result<EventLoop> EventLoop::create() {
    auto state = std::make_unique<detail::LoopState>();
    state->epoll = Fd{loop_call([] { return ::epoll_create1(EPOLL_CLOEXEC); })};
    if (!state->epoll.is_open()) return Error::from_errno(errno, "make an event loop");
    return EventLoop{std::move(state)};
}

Result<EventSource> EventLoop::add_io(FdView fd, IoEvents events, std::function<void(IoEvents)> handler,
                                      Turn turn) {
    auto state = std::make_unique<detail::SourceState>(*state_);
    state->handlers->on_io = std::move(handler);
    state->turn = turn;
    if (watch(*state, fd, to_epoll(events)) < 0)
        return Error::from_errno(errno, fmt::format("wait for descriptor {}", fd.number()));
    return EventSource{std::move(state)};
}

Result<EventSource> EventLoop::add_timer(std::uint64_t delay_ms, std::function<void()> handler) {
    if (loop_call([] { return 0; }) < 0) return Error::from_errno(errno, "add a timer");
    auto state = std::make_unique<detail::SourceState>(*state_);
    state->handlers->on_event = std::move(handler);
    state->start_timer(delay_ms);
    return EventSource{std::move(state)};
}

Result<EventSource> EventLoop::add_signal(int signal, std::function<void()> handler) {
    const std::string what = fmt::format("wait for signal {}", signal);
    sigset_t set;
    sigemptyset(&set);
    if (const int status = pthread_sigmask(SIG_SETMASK, nullptr, &set); status != 0)
        return Error::from_errno(status, what);
    if (sigismember(&set, signal) != 1)
        return Error{Errc::invalid_argument, EBUSY, what + ": it is not blocked: block_signal() comes first"};
    sigemptyset(&set);
    sigaddset(&set, signal);
    auto state = std::make_unique<detail::SourceState>(*state_);
    state->handlers->on_event = std::move(handler);
    state->signals =
        Fd{checked_call(SysCall::signalfd, [&] { return ::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK); })};
    if (!state->signals.is_open()) return Error::from_errno(errno, what);
    if (watch(*state, state->signals.view(), EPOLLIN) < 0) return Error::from_errno(errno, what);
    return EventSource{std::move(state)};
}

Result<void> EventLoop::run() {
    while (!state_->is_stopped) GM_TRY(run_round(*state_, std::nullopt));
    return {};
}

Result<void> EventLoop::run_once(std::uint64_t timeout_ms) { return run_round(*state_, timeout_ms); }

void EventLoop::stop() { state_->is_stopped = true; }

std::uint64_t EventLoop::now_ms() const {
    const auto now = state_->round == detail::Clock::time_point{} ? detail::Clock::now() : state_->round;
    return static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count());
}

Result<void> block_signal(int signal) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    const int status = pthread_sigmask(SIG_BLOCK, &set, nullptr);
    if (status != 0) return Error::from_errno(status, fmt::format("block signal {}", signal));
    return {};
}

}  // namespace guestmem
