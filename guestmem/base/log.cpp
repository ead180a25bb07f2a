// SPDX-License-Identifier: Apache-2.0
#include "guestmem/base/log.hpp"

#include <fmt/format.h>

namespace guestmem {

void LogLimiter::write(LogLevel level, std::string_view text, std::uint64_t now_ms) {
    constexpr std::uint64_t ms_per_second = 1000;
    if (const std::uint64_t second = now_ms / ms_per_second; second != second_) {
        second_ = second;
        count_ = 0;
        if (left_out_ != 0)
            log_.write(LogLevel::warning, fmt::format("{} more lines were left out", left_out_));
        left_out_ = 0;
    }
    if (count_ == burst_) {
        ++left_out_;
        return;
    }
    ++count_;
    log_.write(level, text);
}

}  // namespace guestmem
