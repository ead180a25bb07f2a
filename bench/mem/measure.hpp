// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>
#include <vector>

#include "bench/mem/workload.hpp"

/// Time, and the lines that compare.py reads.
///
/// Contract: a figure is the best pass, in ns per access, of as many passes as fit into the budget, and of five at
/// least; one pass before them is not counted. Where a second thread is at work it is the median, since the best pass
/// is one without that thread. What a pass makes is destroyed after the clock was read.
/// Threads: one at a time.

namespace guestmem::bench {

using Budget = std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

inline constexpr std::size_t min_passes = 5;

/// Makes the compiler take the value as used, and all memory as read and written.
template <typename T>
[[gnu::always_inline]] inline void keep(const T& value) {
    asm volatile("" : : "r"(value) : "memory");
}

/// The time of a pass in ns.
template <typename Pass>
double time_of(Pass& pass) {
    const Clock::time_point start = Clock::now();
    const auto ns = [start] {
        keep(0);
        return std::chrono::duration<double, std::nano>(Clock::now() - start).count();
    };
    if constexpr (std::is_void_v<decltype(pass())>) {
        pass();
        return ns();
    } else {
        [[maybe_unused]] const auto made = pass();
        return ns();
    }
}

/// The times of all passes in ns, the best first.
template <typename Prepare, typename Pass>
std::vector<double> times_of(Budget budget, Prepare prepare, Pass pass) {
    std::vector<double> times;
    prepare();
    time_of(pass);
    const Clock::time_point begin = Clock::now();
    while (times.size() < min_passes || Clock::now() - begin < budget) {
        prepare();
        times.push_back(time_of(pass));
    }
    std::ranges::sort(times);
    return times;
}

/// The best pass, in ns per access.
template <typename Pass>
double best_of(Budget budget, std::size_t count, Pass pass) {
    return times_of(budget, [] {}, pass).front() / static_cast<double>(count);
}

/// The best pass, in ns; what `prepare` does before each of them is not counted.
template <typename Prepare, typename Pass>
double best_single_of(Budget budget, Prepare prepare, Pass pass) {
    return times_of(budget, prepare, pass).front();
}

template <typename Pass>
double median_of(Budget budget, std::size_t count, Pass pass) {
    const std::vector<double> times = times_of(budget, [] {}, pass);
    return times[times.size() / 2] / static_cast<double>(count);
}

/// What figures are about.
struct Row {
    LayoutKind layout = LayoutKind::adjacent;
    Pattern pattern = Pattern::runs;
    std::uint64_t regions = 0;

    void print(std::string_view work, std::string_view chain, double ns) const {
        fmt::print(
            R"({{"work": "{}", "layout": "{}", "pattern": "{}", "chain": "{}", "regions": {}, "ns": {:.4f}}})"
            "\n",
            work, to_string(layout), to_string(pattern), chain, regions, ns);
    }
    void print(std::string_view work, double ns) const { print(work, "independent", ns); }

    void print_digest(std::string_view check, std::uint64_t digest) const {
        fmt::print(R"({{"check": "{}", "layout": "{}", "pattern": "{}", "regions": {}, "digest": "{:016x}"}})"
                   "\n",
                   check, to_string(layout), to_string(pattern), regions, digest);
    }
};

/// A figure without addresses.
inline void print_plain(std::string_view work, std::uint64_t regions, double ns) {
    fmt::print(
        R"({{"work": "{}", "layout": "none", "pattern": "none", "chain": "none", "regions": {}, "ns": {:.4f}}})"
        "\n",
        work, regions, ns);
}

}  // namespace guestmem::bench
