// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include "guestmem/dma/discover/testing/facts_memory.hpp"

/// Times a reader of tables for a bench.
///
/// Contract: counters ns_per_byte (the best of the passes, with the facts' destruction), sum_ns_per_byte (adding up
/// all bytes), is_taken, facts, complaints.
/// Threads: one at a time.

namespace guestmem::dma::testing {

template <typename Call>
double best_ns(Call call) {
    using Clock = std::chrono::steady_clock;
    double best = std::numeric_limits<double>::max();
    for (int pass = 0; pass < 3; ++pass) {
        const auto start = Clock::now();
        call();
        best = std::min(best, std::chrono::duration<double, std::nano>(Clock::now() - start).count());
    }
    return best;
}

template <typename Reader>
void time_reading(benchmark::State& state, const std::vector<std::byte>& table, Reader read) {
    double best = std::numeric_limits<double>::max();
    double sum = best;
    for (auto _ : state) {
        best = std::min(best, best_ns([&] { benchmark::DoNotOptimize(read(table)); }));
        sum = std::min(sum, best_ns([&] {
                           unsigned total = 0;
                           for (const std::byte byte : table) total += std::to_integer<unsigned>(byte);
                           benchmark::DoNotOptimize(total);
                       }));
    }
    const auto facts = read(table);
    const auto size = static_cast<double>(table.size());
    state.counters["ns_per_byte"] = best / size;
    state.counters["sum_ns_per_byte"] = sum / size;
    state.counters["is_taken"] = facts ? 1 : 0;
    state.counters["facts"] = facts ? static_cast<double>(count_of(*facts)) : 0;
    state.counters["complaints"] = facts ? static_cast<double>(facts->complaints.size()) : 0;
}

}  // namespace guestmem::dma::testing
