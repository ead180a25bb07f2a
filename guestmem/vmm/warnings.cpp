// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/warnings.hpp"

#include <chrono>
#include <memory>
#include <mutex>

namespace guestmem::vmm {

Warn limited(Warn warn) {
    struct State {
        explicit State(Warn given) : log(std::move(given)) {}
        std::mutex mutex;
        WarningLog log;
        LogLimiter limiter{log, max_warnings_per_second};
    };
    return [state = std::make_shared<State>(std::move(warn))](const std::string& text) {
        const auto now = std::chrono::steady_clock::now().time_since_epoch();
        const auto now_ms = std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
        const std::lock_guard lock{state->mutex};
        state->limiter.write(LogLevel::warning, text, static_cast<std::uint64_t>(now_ms));
    };
}

}  // namespace guestmem::vmm
