// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/event_loop.hpp"

#include <fmt/format.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <systemd/sd-event.h>
#include <systemd/sd-id128.h>

#include <csignal>
#include <ctime>
#include <exception>
#include <utility>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace detail {

/// The handlers stand in shared blocks: a handler that destroys its own source must outlive the call.
struct Handlers {
    std::function<void(IoEvents)> on_io;
    std::function<void()> on_event;
};

struct LoopState {
    sd_event* loop = nullptr;
    /// What a handler threw: C frames of sd-event stand between it and run(), which throws it again.
    std::exception_ptr thrown;
    ~LoopState() { sd_event_unref(loop); }
};

struct SourceState {
    LoopState* loop = nullptr;
    sd_event_source* source = nullptr;
    std::shared_ptr<Handlers> handlers = std::make_shared<Handlers>();
    ~SourceState() { sd_event_source_disable_unref(source); }
};

}  // namespace detail

namespace {

constexpr std::uint64_t microseconds_per_ms = 1000;

std::shared_ptr<detail::Handlers> handlers_of(void* userdata) {
    return static_cast<detail::SourceState*>(userdata)->handlers;
}

/// sd-event answers with a negative errno; the injector pretends one.
template <typename Function>
int loop_call(Function&& function) {
    return checked_call(SysCall::event_loop, [&] {
        const int status = function();
        if (status >= 0) return status;
        errno = -status;
        return -1;
    });
}

std::uint32_t to_epoll(IoEvents events) {
    return (has_any(events, IoEvents::readable) ? static_cast<std::uint32_t>(EPOLLIN) : 0U) |
           (has_any(events, IoEvents::writable) ? static_cast<std::uint32_t>(EPOLLOUT) : 0U) |
           (events == IoEvents::both_on_change ? static_cast<std::uint32_t>(EPOLLET) : 0U);
}

/// Runs a handler; nothing is thrown through sd-event.
template <typename Function>
int guarded(void* userdata, Function&& function) noexcept {
    detail::LoopState* const state = static_cast<detail::SourceState*>(userdata)->loop;
    const auto handlers = handlers_of(userdata);
    try {
        function(*handlers);
    } catch (...) {
        state->thrown = std::current_exception();
        sd_event_exit(state->loop, 0);
    }
    return 0;
}

int on_io(sd_event_source*, int, std::uint32_t revents, void* userdata) {
    const bool readable = (revents & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0;
    const bool writable = (revents & EPOLLOUT) != 0;
    return guarded(userdata, [&](detail::Handlers& handlers) {
        handlers.on_io(static_cast<IoEvents>((readable ? 1 : 0) | (writable ? 2 : 0)));
    });
}

int on_timer(sd_event_source*, std::uint64_t, void* userdata) {
    return guarded(userdata, [](detail::Handlers& handlers) { handlers.on_event(); });
}

int on_signal(sd_event_source*, const signalfd_siginfo*, void* userdata) {
    return guarded(userdata, [](detail::Handlers& handlers) { handlers.on_event(); });
}

}  // namespace

EventSource::EventSource() = default;
EventSource::EventSource(std::unique_ptr<detail::SourceState> state) : state_(std::move(state)) {}
EventSource::EventSource(EventSource&&) noexcept = default;
EventSource& EventSource::operator=(EventSource&&) noexcept = default;
EventSource::~EventSource() = default;

Result<void> EventSource::set_events(IoEvents events) {
    if (loop_call([&] { return sd_event_source_set_io_events(state_->source, to_epoll(events)); }) < 0)
        return Error::from_errno(errno, "change what a descriptor waits for");
    return {};
}

Result<void> EventSource::restart(std::uint64_t delay_ms) {
    if (state_ == nullptr) return Error{Errc::unavailable, "a timer that is no more cannot be started again"};
    if (loop_call([&] {
            const int status =
                sd_event_source_set_time_relative(state_->source, delay_ms * microseconds_per_ms);
            return status < 0 ? status : sd_event_source_set_enabled(state_->source, SD_EVENT_ONESHOT);
        }) < 0)
        return Error::from_errno(errno, "restart a timer");
    return {};
}

EventLoop::EventLoop(std::unique_ptr<detail::LoopState> state) : state_(std::move(state)) {}
EventLoop::EventLoop(EventLoop&&) noexcept = default;
EventLoop& EventLoop::operator=(EventLoop&&) noexcept = default;
EventLoop::~EventLoop() = default;

Result<EventLoop> EventLoop::create() {
    auto state = std::make_unique<detail::LoopState>();
    if (loop_call([&] { return sd_event_new(&state->loop); }) < 0)
        return Error::from_errno(errno, "make an event loop");
    // The first timer that is waited for asks for it, and it is kept for the thread: asked for while a file can still
    // be opened, it is not when a filter of system calls forbids that. Without it timers are spread otherwise.
    sd_id128_t boot{};
    static_cast<void>(sd_id128_get_boot(&boot));
    return EventLoop{std::move(state)};
}

Result<EventSource> EventLoop::add_io(FdView fd, IoEvents events, std::function<void(IoEvents)> handler,
                                      Turn turn) {
    auto state = std::make_unique<detail::SourceState>();
    state->loop = state_.get();
    state->handlers->on_io = std::move(handler);
    if (loop_call([&] {
            return sd_event_add_io(state_->loop, &state->source, fd.number(), to_epoll(events), &on_io,
                                   state.get());
        }) < 0)
        return Error::from_errno(errno, fmt::format("wait for descriptor {}", fd.number()));
    if (turn == Turn::late &&
        loop_call([&] { return sd_event_source_set_priority(state->source, SD_EVENT_PRIORITY_IDLE); }) < 0)
        return Error::from_errno(errno, fmt::format("give descriptor {} its turn", fd.number()));
    return EventSource{std::move(state)};
}

Result<EventSource> EventLoop::add_timer(std::uint64_t delay_ms, std::function<void()> handler) {
    auto state = std::make_unique<detail::SourceState>();
    state->loop = state_.get();
    state->handlers->on_event = std::move(handler);
    constexpr std::uint64_t accuracy = microseconds_per_ms;
    if (loop_call([&] {
            return sd_event_add_time_relative(state_->loop, &state->source, CLOCK_MONOTONIC,
                                              delay_ms * microseconds_per_ms, accuracy, &on_timer,
                                              state.get());
        }) < 0)
        return Error::from_errno(errno, "add a timer");
    return EventSource{std::move(state)};
}

Result<EventSource> EventLoop::add_signal(int signal, std::function<void()> handler) {
    auto state = std::make_unique<detail::SourceState>();
    state->loop = state_.get();
    state->handlers->on_event = std::move(handler);
    if (loop_call([&] {
            return sd_event_add_signal(state_->loop, &state->source, signal, &on_signal, state.get());
        }) < 0)
        return Error::from_errno(errno, fmt::format("wait for signal {}", signal));
    return EventSource{std::move(state)};
}

Result<void> EventLoop::run() {
    const int status = sd_event_loop(state_->loop);
    if (state_->thrown) std::rethrow_exception(std::exchange(state_->thrown, nullptr));
    if (status < 0) return Error::from_errno(-status, "run the event loop");
    return {};
}

Result<void> EventLoop::run_once(std::uint64_t timeout_ms) {
    const int status = sd_event_run(state_->loop, timeout_ms * microseconds_per_ms);
    if (state_->thrown) std::rethrow_exception(std::exchange(state_->thrown, nullptr));
    if (status < 0) return Error::from_errno(-status, "run the event loop once");
    return {};
}

void EventLoop::stop() { sd_event_exit(state_->loop, 0); }

std::uint64_t EventLoop::now_ms() const {
    std::uint64_t now = 0;
    if (sd_event_now(state_->loop, CLOCK_MONOTONIC, &now) < 0) return 0;
    return now / microseconds_per_ms;
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
