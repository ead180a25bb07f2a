// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/legacy.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <vector>

namespace guestmem::share {
namespace {

/// Between two looks at a keeper that is behind, doubled each time.
constexpr std::uint64_t first_pause_ms = 50;
constexpr std::uint64_t longest_pause_ms = 1'000;

}  // namespace

void Legacy::replace_keeper(std::unique_ptr<Keeper> keeper, std::uint64_t now_ms,
                            const std::function<void()>& offer) {
    keeper_ = std::move(keeper);
    has_failed_ = is_behind_ = false;
    unkept_.clear();
    unforgotten_.clear();
    has_rest_ = true;
    offer();
    if (!has_keeper() || is_behind_) return;
    has_rest_ = !is_taken(keeper_->forget_rest(), now_ms);
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

bool Legacy::is_taken(const Result<void>& done, std::uint64_t now_ms) {
    if (done || done.error().code() != Errc::timed_out) {
        check(done, now_ms);
        return true;
    }
    is_stuck_ = true;
    if (is_behind_) return false;
    is_behind_ = true;
    pause_ms_ = 0;
    wait_longer(now_ms);
    log_->write(LogLevel::warning,
                fmt::format("the {} takes nothing for the moment ({}): until it does, what comes would not "
                            "survive this process",
                            keeper_->describe(), done.error().message()),
                now_ms);
    if (on_behind_) on_behind_();
    return false;
}

void Legacy::wait_longer(std::uint64_t now_ms) {
    pause_ms_ = std::clamp(pause_ms_ * 2, first_pause_ms, longest_pause_ms);
    next_try_ms_ = now_ms + pause_ms_;
}

bool Legacy::catch_up(std::uint64_t now_ms, const std::function<void()>& offer) {
    if (!is_behind_ || !has_keeper()) return false;
    if (now_ms < next_try_ms_) return true;
    const auto answers = keeper_->is_answering();
    if (!answers) {
        check(answers.error(), now_ms);
        // That it had no room for something is an answer.
        if (has_failed_) return false;
    }
    if (answers && !*answers) {
        wait_longer(now_ms);
        return true;
    }
    if (!give_what_it_lacks(offer, now_ms)) {
        wait_longer(now_ms);
        return has_keeper();
    }
    is_behind_ = false;
    log_->write(LogLevel::info, fmt::format("the {} holds everything", keeper_->describe()), now_ms);
    return false;
}

bool Legacy::give_what_it_lacks(const std::function<void()>& offer, std::uint64_t now_ms) {
    is_stuck_ = false;
    const std::vector<KeptKey> gone{unforgotten_.begin(), unforgotten_.end()};
    if (!gone.empty() && !is_taken(keeper_->forget(gone), now_ms)) return false;
    unforgotten_.clear();
    is_offering_ = true;
    offer();
    is_offering_ = false;
    if (is_stuck_ || !has_keeper()) return false;
    // What nobody has offered is no more.
    unkept_.clear();
    if (has_rest_ && !is_taken(keeper_->forget_rest(), now_ms)) return false;
    has_rest_ = false;
    return true;
}

Result<void> Legacy::check_room(std::size_t count) const {
    if (!has_keeper()) return {};
    return keeper_->check_room(count);
}

void Legacy::keep(std::span<const KeepRequest> requests, std::uint64_t now_ms) {
    if (!has_keeper() || requests.empty()) return;
    if (is_behind_ && !is_offering_) {
        for (const KeepRequest& request : requests) {
            unkept_.insert(request.key);
            unforgotten_.erase(request.key);
        }
        return;
    }
    std::vector<KeepRequest> lacking;
    if (is_offering_) {
        if (is_stuck_) return;
        std::ranges::copy_if(requests, std::back_inserter(lacking),
                             [this](const KeepRequest& request) { return unkept_.contains(request.key); });
        if (lacking.empty()) return;
        requests = lacking;
    }
    const bool is_kept = is_taken(keeper_->keep(requests), now_ms);
    for (const KeepRequest& request : requests) {
        if (is_kept) {
            unkept_.erase(request.key);
        } else {
            unkept_.insert(request.key);
        }
    }
}

void Legacy::keep(const KeptKey& key, FdView fd, std::uint64_t now_ms) {
    const KeepRequest request{key, fd};
    keep({&request, 1}, now_ms);
}

void Legacy::forget(std::span<const KeptKey> keys, std::uint64_t now_ms) {
    if (!has_keeper() || keys.empty()) return;
    if (!is_behind_ && is_taken(keeper_->forget(keys), now_ms)) return;
    for (const KeptKey& key : keys) {
        unkept_.erase(key);
        unforgotten_.insert(key);
    }
}

void Legacy::forget(const KeptKey& key, std::uint64_t now_ms) { forget({&key, 1}, now_ms); }

void Legacy::sync(std::uint64_t now_ms) {
    if (has_keeper() && !is_behind_) static_cast<void>(is_taken(keeper_->sync_soon(), now_ms));
}

}  // namespace guestmem::share
