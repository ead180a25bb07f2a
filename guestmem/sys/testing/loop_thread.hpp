// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/sys/event_loop.hpp"
#include "guestmem/sys/eventfd.hpp"

/// An EventLoop that runs in a thread of its own, for tests whose other half blocks.
///
/// Contract: call() runs a function in the loop's thread and waits for what it returns; whatever belongs to the
/// loop (a server, a source) is made, asked and destroyed through it. The destructor stops the loop and joins.
/// Limits: a call that takes longer than loop_call_limit aborts the test.
/// Threads: call() any, but not the loop's own.
/// Example:
///     LoopThread loop;
///     auto server = loop.call([](EventLoop& l) { return Server::create(l, options, handler); });
///     ...
///     loop.call([&](EventLoop&) { std::exchange(server, Error{Errc::io, "gone"}); });

namespace guestmem::testing {

inline constexpr std::chrono::seconds loop_call_limit{20};

class LoopThread {
public:
    LoopThread()
        : wake_(EventFd::create().value()),
          loop_(EventLoop::create().value()),
          waking_(loop_.add_io(wake_.view(), IoEvents::readable, [this](IoEvents) { run_jobs(); }).value()),
          thread_([this] { GM_CHECK(loop_.run()); }) {}
    LoopThread(const LoopThread&) = delete;
    LoopThread& operator=(const LoopThread&) = delete;
    ~LoopThread() {
        call([](EventLoop& loop) { loop.stop(); });
        thread_.join();
    }

    template <typename Function>
    auto call(Function&& function) -> decltype(function(std::declval<EventLoop&>())) {
        using Value = decltype(function(loop_));
        auto task = std::make_shared<std::packaged_task<Value()>>([&] { return function(loop_); });
        auto done = task->get_future();
        {
            const std::scoped_lock lock{mutex_};
            jobs_.emplace_back([task] { (*task)(); });
        }
        GM_CHECK(wake_.ring());
        GM_CHECK(done.wait_for(loop_call_limit) == std::future_status::ready);
        return done.get();
    }

private:
    void run_jobs() {
        GM_CHECK(wake_.drain());
        std::vector<std::function<void()>> jobs;
        {
            const std::scoped_lock lock{mutex_};
            jobs.swap(jobs_);
        }
        for (const auto& job : jobs) job();
    }

    EventFd wake_;
    std::mutex mutex_;
    std::vector<std::function<void()>> jobs_;
    EventLoop loop_;
    EventSource waking_;
    std::thread thread_;
};

/// Asks again and again, for at most `limit`, until `is_so` is true; whether it became so.
template <typename Predicate>
[[nodiscard]] bool eventually(Predicate&& is_so, std::chrono::milliseconds limit = std::chrono::seconds{10}) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (!is_so()) {
        if (std::chrono::steady_clock::now() > deadline) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds{1});
    }
    return true;
}

}  // namespace guestmem::testing
