// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <vector>

/// The lines of the comparison: what was reached, beside what, and what it is to be at most.
///
/// Concepts: a row has the service's figure, the one of its peer measured in the same run (0: there is none), and a
/// target: a bound of their ratio where there is a peer, of the figure itself where there is none.
/// Contract: a figure is the median of its rounds.
/// Threads: one at a time.

namespace guestmem::bench {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

inline double median(std::vector<double> values) {
    std::ranges::sort(values);
    return values.empty() ? 0 : values[values.size() / 2];
}

struct Row {
    std::string work;
    std::string unit;
    double reached = 0;
    double peer = 0;
    std::optional<double> target = {};

    [[nodiscard]] double judged() const { return peer > 0 ? reached / peer : reached; }
    [[nodiscard]] bool is_reached() const { return !target || judged() <= *target; }
};

using Table = std::vector<Row>;

}  // namespace guestmem::bench
