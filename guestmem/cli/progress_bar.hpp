// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

/// How far long work is, on one line of a terminal.
///
/// Contract: draws on standard error, only where that is a terminal, and only once the work has taken longer than
/// patience; the line is gone when the bar is. Elsewhere it is silent.
/// Threads: one at a time.
/// Example:
///     ProgressBar bar{"ram0: taking pages", total_bytes};
///     bar.show(done_bytes);

namespace guestmem::cli {

class ProgressBar {
public:
    static constexpr std::chrono::milliseconds patience{300};

    ProgressBar(std::string what, std::uint64_t total_bytes);
    ProgressBar(const ProgressBar&) = delete;
    ProgressBar& operator=(const ProgressBar&) = delete;
    ~ProgressBar();

    void show(std::uint64_t done_bytes);

private:
    std::string what_;
    std::uint64_t total_bytes_;
    bool is_terminal_;
    bool is_drawn_ = false;
    std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

}  // namespace guestmem::cli
