// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

/// The store-buffering litmus: a writer stores data and leaves a mark; at the same time a taker takes the marks and
/// reads the data. What is lost was neither seen nor marked, and nobody would ever read it again.
///
/// Concepts: a Subject says what a mark is. prepare() brings everything into the state from which marks can get lost;
/// look() lets the writer's processor fetch what mark(cell) will look at, so that the mark is one quick load while the
/// store before it still waits for its cache line; take() takes the marks; is_marked(cell) says afterwards whether a
/// mark is left. All but mark and look are the taker's.
/// Contract: each side has a processor of its own where there are two. Whoever came too early waits a little longer in
/// the next round, so the two meet on any machine. A subject without a barrier loses between 500 and 300,000 of a
/// million on x86-64; without this care it was 20.
/// Limits: ends after the number of tries or after max_litmus_time, whichever is first.
/// Threads: starts one, and moves the calling thread to one processor meanwhile.

namespace guestmem::testing {

inline constexpr std::uint64_t count_litmus_cells = 4;
inline constexpr std::chrono::seconds max_litmus_time{20};

#if defined(__SANITIZE_THREAD__)
inline constexpr bool has_thread_sanitizer = true;
#elif defined(__has_feature)
inline constexpr bool has_thread_sanitizer = __has_feature(thread_sanitizer);
#else
inline constexpr bool has_thread_sanitizer = false;
#endif

/// A thread sanitizer makes each step so long that the window closes: it looks for races, not for lost pages.
inline constexpr std::uint64_t count_litmus_tries = has_thread_sanitizer ? 40'000 : 1'000'000;

struct LitmusResult {
    std::uint64_t count_tries = 0;
    std::uint64_t count_lost = 0;
    /// Tries in which the taker came first: both orders have to occur, or the two never met.
    std::uint64_t count_marked = 0;
};

/// The first two processors that this process may use; the calling thread is on the first one while it lives.
class TwoProcessors {
public:
    TwoProcessors() {
        ::sched_getaffinity(0, sizeof all_, &all_);
        for (unsigned i = 0; i < CPU_SETSIZE; ++i)
            if (CPU_ISSET(i, &all_)) numbers_.push_back(i);
        take(numbers_.at(0));
    }
    TwoProcessors(const TwoProcessors&) = delete;
    TwoProcessors& operator=(const TwoProcessors&) = delete;
    ~TwoProcessors() { ::sched_setaffinity(0, sizeof all_, &all_); }

    void take_second() const { take(numbers_.at(numbers_.size() > 1 ? 1 : 0)); }

private:
    static void take(unsigned number) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(number, &one);
        ::sched_setaffinity(0, sizeof one, &one);
    }
    cpu_set_t all_{};
    std::vector<unsigned> numbers_;
};

/// Until `value` is at least `wanted`; gives the processor away in case the other thread has none.
inline void wait_for(const std::atomic<std::uint64_t>& value, std::uint64_t wanted) {
    for (int turn = 1; value.load(std::memory_order_acquire) < wanted; ++turn)
        if (turn % 4'096 == 0) std::this_thread::yield();
}

/// What both sides see, each thing in a cache line of its own.
struct LitmusTable {
    struct alignas(64) Cell {
        std::atomic<std::uint64_t> value{0};
    };
    static constexpr std::uint64_t is_over = ~std::uint64_t{0};
    /// Some ten microseconds; a thread that lost its processor for longer teaches nothing.
    static constexpr std::int64_t max_wait = 20'000;

    std::array<Cell, count_litmus_cells> cells;
    alignas(64) std::atomic<std::uint64_t> go{0};
    alignas(64) std::atomic<std::uint64_t> ready{0};
    alignas(64) std::atomic<std::uint64_t> done{0};
    /// How long the taker waits; the writer does when it is negative.
    alignas(64) std::atomic<std::int64_t> lead{0};

    void wait(std::int64_t count) const {
        for (; count > 0; --count) (void)lead.load(std::memory_order_relaxed);
    }
};

template <typename Subject>
void write_litmus(Subject& subject, LitmusTable& table) {
    for (std::uint64_t round = 1;; ++round) {
        wait_for(table.go, round);
        if (table.go.load(std::memory_order_relaxed) == LitmusTable::is_over) return;
        for (std::uint64_t i = 0; i < count_litmus_cells; ++i) subject.look(i);
        const std::int64_t count_waits = -table.lead.load(std::memory_order_relaxed);
        table.ready.store(round, std::memory_order_release);
        table.wait(count_waits);
        for (std::uint64_t i = 0; i < count_litmus_cells; ++i) {
            table.cells[i].value.store(round, std::memory_order_relaxed);
            subject.mark(i);
        }
        table.done.store(round, std::memory_order_release);
    }
}

template <typename Subject>
LitmusResult run_litmus(Subject&& subject, std::uint64_t count_tries = count_litmus_tries) {
    const TwoProcessors processors;
    // Not on the stack: with its checks for returned frames, g++ 12 places this without its alignment.
    const auto owner = std::make_unique<LitmusTable>();
    LitmusTable& table = *owner;
    std::thread writer{[&] {
        processors.take_second();
        write_litmus(subject, table);
    }};
    LitmusResult result;
    const auto last_moment = std::chrono::steady_clock::now() + max_litmus_time;
    std::array<std::uint64_t, count_litmus_cells> seen{};
    for (std::uint64_t round = 1; result.count_tries < count_tries; ++round) {
        if (std::chrono::steady_clock::now() >= last_moment) break;
        subject.prepare();
        table.go.store(round, std::memory_order_release);
        wait_for(table.ready, round);
        table.wait(table.lead.load(std::memory_order_relaxed));
        subject.take();
        for (std::uint64_t i = 0; i < count_litmus_cells; ++i)
            seen[i] = table.cells[i].value.load(std::memory_order_relaxed);
        wait_for(table.done, round);
        std::int64_t count_marked = 0;
        for (std::uint64_t i = 0; i < count_litmus_cells; ++i) {
            const bool is_marked = subject.is_marked(i);
            if (is_marked) ++count_marked;
            if (!is_marked && seen[i] != round) ++result.count_lost;
        }
        result.count_tries += count_litmus_cells;
        result.count_marked += static_cast<std::uint64_t>(count_marked);
        const std::int64_t next =
            table.lead.load(std::memory_order_relaxed) + count_marked - std::int64_t{count_litmus_cells / 2};
        table.lead.store(std::clamp(next, -LitmusTable::max_wait, LitmusTable::max_wait),
                         std::memory_order_relaxed);
    }
    table.go.store(LitmusTable::is_over, std::memory_order_release);
    writer.join();
    return result;
}

/// Tells the numbers, and expects that the two sides met.
inline void expect_both_orders(const char* name, const LitmusResult& result) {
    std::printf("%s: lost %llu of %llu; the mark came after the take in %llu\n", name,
                static_cast<unsigned long long>(result.count_lost),
                static_cast<unsigned long long>(result.count_tries),
                static_cast<unsigned long long>(result.count_marked));
    EXPECT_GT(result.count_marked, 0U);
    EXPECT_LT(result.count_marked, result.count_tries);
}

}  // namespace guestmem::testing
