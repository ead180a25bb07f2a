// SPDX-License-Identifier: Apache-2.0
/// What it costs to know which pages were written: a store of 8 bytes with and without a mark, and the work on a
/// whole region of 1 GiB with pages of 4 KiB.
///
/// write/HOW/MIB/ORDER/THREADS stands for a device that writes descriptors and data: 65536 stores, at random or in
/// sequence, in so many MiB; with two threads both write into the same 256 pages, each to words of its own.
/// HOW is off (a DirtyTracker that is off), on (a DirtyTracker that is on, the pages marked already), log (a DirtyLog,
/// marked already), always_or (a DirtyLog where membarrier is missing, a locked or for each store), and first (a
/// DirtyLog, each page marked for the first time).
/// region/WHAT stands for one round of a migration of 1 GiB.
/// The baseline of the same run, taken in turns with it, is the bare store. Counters: ns (of one store, the best
/// pass), of_raw (its ratio to the best bare pass), us (of one region, the best round).
#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/dirty_tracker.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/membarrier.hpp"

namespace guestmem {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t count_stores = 65536;
constexpr std::uint64_t mib = std::uint64_t{1} << 20;
constexpr std::uint64_t gib = std::uint64_t{1} << 30;
constexpr int passes_per_round = 8;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

enum class Order : std::uint8_t { random, sequence, same_pages };
enum class How : std::uint8_t { off, on, log, always_or, first };

std::unique_ptr<DirtyLog> log_without_membarrier(std::uint64_t size_bytes) {
    const FaultInjector injector{0, {.only = SysCall::membarrier, .os_error = ENOSYS}};
    return DirtyLog::create({.size_bytes = size_bytes}).value();
}

/// Memory, its tracker and logs, and where each thread writes.
struct Ground {
    Ground(std::uint64_t size_bytes, Order order, unsigned count_threads)
        : memory(size_bytes / 8),
          off(size_bytes),
          on(size_bytes),
          log(DirtyLog::create({.size_bytes = size_bytes}).value()),
          always_or(log_without_membarrier(size_bytes)),
          words(count_threads) {
        GM_CHECK(on.start());
        std::mt19937_64 random{1};
        for (unsigned thread = 0; thread < count_threads; ++thread)
            for (std::size_t i = 0; i < count_stores; ++i) {
                const std::uint64_t place = order == Order::sequence ? i : random();
                // Threads that share pages have words of their own: every 64 bytes belong to one of them.
                const std::uint64_t line = place / 8 * count_threads + thread;
                words[thread].push_back((line * 8 + place % 8) % memory.size());
            }
    }
    std::vector<std::uint64_t> memory;
    DirtyTracker off;
    DirtyTracker on;
    std::unique_ptr<DirtyLog> log;
    std::unique_ptr<DirtyLog> always_or;
    std::vector<std::vector<std::uint64_t>> words;
};

/// One pass of one thread.
template <typename Mark>
void write_words(Ground& ground, unsigned thread, Mark&& mark) {
    std::uint64_t value = 0;
    std::uint64_t* const memory = ground.memory.data();
    for (const std::uint64_t word : ground.words[thread]) {
        std::atomic_ref{memory[word]}.store(++value, std::memory_order_relaxed);
        mark(word * 8);
    }
}

/// Seconds for some passes of all threads at once: those of the slowest.
template <typename Mark>
double time_passes(Ground& ground, int count_passes, Mark&& mark) {
    const auto pass = [&](unsigned thread) {
        for (int i = 0; i < count_passes; ++i) write_words(ground, thread, mark);
    };
    if (ground.words.size() == 1) {
        const auto start = Clock::now();
        pass(0);
        return seconds_since(start);
    }
    std::barrier gate{static_cast<std::ptrdiff_t>(ground.words.size())};
    std::vector<double> seconds(ground.words.size());
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < ground.words.size(); ++thread)
        threads.emplace_back([&, thread] {
            gate.arrive_and_wait();
            const auto start = Clock::now();
            pass(thread);
            seconds[thread] = seconds_since(start);
        });
    for (std::thread& thread : threads) thread.join();
    return std::ranges::max(seconds);
}

double time_of(Ground& ground, How how) {
    switch (how) {
        case How::off:
            return time_passes(ground, passes_per_round,
                               [&](std::uint64_t offset) { ground.off.mark_written(offset, 8); });
        case How::on:
            return time_passes(ground, passes_per_round,
                               [&](std::uint64_t offset) { ground.on.mark_written(offset, 8); });
        case How::log:
            return time_passes(ground, passes_per_round,
                               [&](std::uint64_t offset) { ground.log->mark(offset, 8); });
        case How::always_or:
            return time_passes(ground, passes_per_round,
                               [&](std::uint64_t offset) { ground.always_or->mark(offset, 8); });
        case How::first: {
            double seconds = 0;
            for (int i = 0; i < passes_per_round; ++i) {
                GM_CHECK(ground.log->clear());
                seconds += time_passes(ground, 1, [&](std::uint64_t offset) { ground.log->mark(offset, 8); });
            }
            return seconds;
        }
    }
    return 0;
}

void write(benchmark::State& state, How how, std::uint64_t size_bytes, Order order, unsigned count_threads) {
    Ground ground{size_bytes, order, count_threads};
    double best_raw = std::numeric_limits<double>::max();
    double best = best_raw;
    (void)time_of(ground, how);
    for (auto turn : state) {
        (void)turn;
        best_raw = std::min(best_raw, time_passes(ground, passes_per_round, [](std::uint64_t) {}));
        const double seconds = time_of(ground, how);
        best = std::min(best, seconds);
        state.SetIterationTime(seconds);
    }
    benchmark::DoNotOptimize(ground.memory.data());
    state.counters["ns"] = best / passes_per_round / static_cast<double>(count_stores) * 1e9;
    state.counters["of_raw"] = best / best_raw;
}

/// `work` on a log of 1 GiB; `prepare` before each time.
template <typename Prepare, typename Work>
void region(benchmark::State& state, Prepare&& prepare, Work&& work) {
    const auto log = DirtyLog::create({.size_bytes = gib}).value();
    DirtyPages pages = log->harvest().value();
    double best = std::numeric_limits<double>::max();
    for (auto turn : state) {
        (void)turn;
        prepare(*log);
        const auto start = Clock::now();
        work(*log, pages);
        const double seconds = seconds_since(start);
        best = std::min(best, seconds);
        state.SetIterationTime(seconds);
    }
    state.counters["us"] = best * 1e6;
}

void add_writes() {
    struct Place {
        const char* name;
        std::uint64_t size_bytes;
        Order order;
        unsigned count_threads;
    };
    struct Way {
        const char* name;
        How how;
    };
    for (const Place& place :
         {Place{"1/random/1", mib, Order::random, 1}, Place{"1/sequence/1", mib, Order::sequence, 1},
          Place{"64/random/1", 64 * mib, Order::random, 1},
          Place{"1/same_pages/2", mib, Order::same_pages, 2}})
        for (const Way& way : {Way{"off", How::off}, Way{"on", How::on}, Way{"log", How::log},
                               Way{"always_or", How::always_or}, Way{"first", How::first}})
            benchmark::RegisterBenchmark((std::string{"write/"} + way.name + "/" + place.name).c_str(),
                                         [how = way.how, place](benchmark::State& state) {
                                             write(state, how, place.size_bytes, place.order,
                                                   place.count_threads);
                                         })
                ->UseManualTime()
                ->Unit(benchmark::kMicrosecond)
                ->MinTime(0.1);
}

void add_regions() {
    const auto clean = [](DirtyLog& log) { GM_CHECK(log.clear()); };
    const auto dirty = [](DirtyLog& log) { log.mark(0, gib); };
    const auto mark = [](DirtyLog& log, DirtyPages&) { log.mark(0, gib); };
    const auto harvest = [](DirtyLog& log, DirtyPages& pages) { GM_CHECK(log.harvest_into(pages)); };
    const auto barrier = [](DirtyLog&, DirtyPages&) { GM_CHECK(membarrier()); };
    const auto look = [](DirtyLog&, DirtyPages& pages) {
        std::uint64_t count_bytes = 0;
        pages.for_each_run([&](DirtyRun run) { count_bytes += run.size_bytes; });
        benchmark::DoNotOptimize(count_bytes);
    };
    const auto add = [](const char* name, auto prepare, auto work) {
        benchmark::RegisterBenchmark(name, [=](benchmark::State& state) { region(state, prepare, work); })
            ->UseManualTime()
            ->Unit(benchmark::kMicrosecond)
            ->MinTime(0.1);
    };
    add("region/mark_clear", clean, mark);
    add("region/mark_marked", dirty, mark);
    add("region/harvest_clean", clean, harvest);
    add("region/harvest_dirty", dirty, harvest);
    add("region/runs_of_clean_pages", clean, look);
    add("region/membarrier_alone", [](DirtyLog&) {}, barrier);
}

}  // namespace
}  // namespace guestmem

int main(int argc, char** argv) {
    guestmem::add_writes();
    guestmem::add_regions();
    benchmark::Initialize(&argc, argv);
    benchmark::RunSpecifiedBenchmarks();
    return 0;
}
