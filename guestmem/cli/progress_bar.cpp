// SPDX-License-Identifier: Apache-2.0
#include "guestmem/cli/progress_bar.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "guestmem/mem/backends/size_text.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem::cli {

namespace {

constexpr std::size_t bar_columns = 30;
constexpr std::uint64_t mib = std::uint64_t{1} << 20;

/// Whole MiB: a bar needs no more.
std::string in_mib(std::uint64_t bytes) { return format_qemu_size(bytes / mib * mib); }

}  // namespace

ProgressBar::ProgressBar(std::string what, std::uint64_t total_bytes)
    : what_(std::move(what)),
      total_bytes_(std::max<std::uint64_t>(total_bytes, 1)),
      is_terminal_(is_stderr_terminal()) {}

ProgressBar::~ProgressBar() {
    if (!is_drawn_) return;
    std::fputs("\r\033[K", stderr);
    std::fflush(stderr);
}

void ProgressBar::show(std::uint64_t done_bytes) {
    const auto spent = std::chrono::steady_clock::now() - begin_;
    if (!is_terminal_ || spent < patience) return;
    is_drawn_ = true;
    const double share = std::min(static_cast<double>(done_bytes) / static_cast<double>(total_bytes_), 1.0);
    const auto columns = static_cast<std::size_t>(share * bar_columns);
    const double seconds = std::chrono::duration<double>(spent).count();
    std::string left;
    if (share > 0 && share < 1) left = fmt::format(", {:.0f} s left", seconds / share - seconds);
    const std::string line = fmt::format("{} [{:<{}}] {} of {}{}", what_, std::string(columns, '='),
                                         bar_columns, in_mib(done_bytes), in_mib(total_bytes_), left);
    // A line that wraps cannot be wiped.
    fmt::print(stderr, "\r\033[K{}", line.substr(0, stderr_columns() - 1));
    std::fflush(stderr);
}

}  // namespace guestmem::cli
