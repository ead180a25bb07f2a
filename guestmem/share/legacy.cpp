// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/legacy.hpp"

#include <fmt/format.h>

namespace guestmem::share {

void Legacy::replace_keeper(std::unique_ptr<Keeper> keeper) {
    keeper_ = std::move(keeper);
    has_failed_ = false;
}

void Legacy::check(const Result<void>& done, std::uint64_t now_ms) {
    if (done || has_failed_) return;
    if (done.error().code() == Errc::exhausted) {
        // It lives, and has no room: what it has stays good.
        log_->write(
            LogLevel::error,
            fmt::format("the {} has no room for more: what came last would not survive this process ({})",
                        keeper_->describe(), done.error().message()),
            now_ms);
        return;
    }
    has_failed_ = true;
    log_->write(LogLevel::error,
                fmt::format("the {} does not hold what it is given ({}): until there is another one, clients "
                            "would not survive this process",
                            keeper_->describe(), done.error().message()),
                now_ms);
}

void Legacy::let_go_of_keeper() {
    keeper_.reset();
    has_failed_ = true;
}

void Legacy::keep(std::span<const KeepRequest> requests, std::uint64_t now_ms) {
    if (keeper_ && !has_failed_ && !requests.empty()) check(keeper_->keep(requests), now_ms);
}

void Legacy::keep(const KeptKey& key, FdView fd, std::uint64_t now_ms) {
    const KeepRequest request{key, fd};
    keep({&request, 1}, now_ms);
}

void Legacy::forget(std::span<const KeptKey> keys, std::uint64_t now_ms) {
    if (keeper_ && !has_failed_ && !keys.empty()) check(keeper_->forget(keys), now_ms);
}

void Legacy::forget(const KeptKey& key, std::uint64_t now_ms) { forget({&key, 1}, now_ms); }

void Legacy::sync(std::uint64_t now_ms) {
    if (keeper_ && !has_failed_) check(keeper_->sync(), now_ms);
}

}  // namespace guestmem::share
