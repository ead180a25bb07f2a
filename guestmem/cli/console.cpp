// SPDX-License-Identifier: Apache-2.0
#include "guestmem/cli/console.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <thread>
#include <utility>

namespace guestmem::cli {
namespace {

constexpr std::byte prefix_key{0x01};
constexpr std::size_t input_piece_bytes = 256;
constexpr std::size_t max_waiting_bytes = 4096;
constexpr std::uint64_t retry_ms = 10;

}  // namespace

Result<std::unique_ptr<Console>> Console::create(EventLoop& loop, FdView input, FdView output) {
    EventFd wakeup = GM_TRY(EventFd::create());
    return std::unique_ptr<Console>{new Console{loop, input, output, std::move(wakeup)}};
}

Result<void> Console::listen(Handlers handlers) {
    handlers_ = std::move(handlers);
    wakeup_source_ = GM_TRY(loop_.add_io(wakeup_.view(), IoEvents::readable, [this](IoEvents) {
        static_cast<void>(wakeup_.drain());
        offer();
        const std::lock_guard lock{mutex_};
        write_kept();
        if (!kept_.empty()) static_cast<void>(retry_.restart(retry_ms));
    }));
    retry_ = GM_TRY(loop_.add_timer(retry_ms, [this] { wake(); }));
    if (!handlers_.receive) return {};
    terminal_.emplace(GM_TRY(RawTerminal::create(input_)));
    auto source = loop_.add_io(input_, IoEvents::readable, [this](IoEvents) {
        fill();
        offer();
    });
    // A regular file cannot be waited for.
    if (source) {
        input_source_ = *std::move(source);
    } else {
        wake();
    }
    return {};
}

void Console::wake() { static_cast<void>(wakeup_.ring()); }

void Console::fill() {
    while (waiting_.size() < max_waiting_bytes && !is_input_at_end_) {
        std::array<std::byte, input_piece_bytes> buffer{};
        const auto count = read_some(input_, buffer);
        if (!count || *count == 0) {
            is_input_at_end_ = true;
            input_source_ = EventSource{};
            return;
        }
        take_keys(std::span<const std::byte>{buffer}.first(*count));
        if (input_source_.is_active()) return;
    }
}

void Console::give() {
    if (waiting_.empty()) return;
    const std::size_t count = std::min(handlers_.receive(waiting_), waiting_.size());
    waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(count));
}

void Console::take_keys(std::span<const std::byte> bytes) {
    if (!terminal_->is_terminal() || !handlers_.quit) {
        waiting_.insert(waiting_.end(), bytes.begin(), bytes.end());
        return;
    }
    for (const std::byte key : bytes) {
        if (!std::exchange(is_after_prefix_, false)) {
            if (key == prefix_key) {
                is_after_prefix_ = true;
            } else {
                waiting_.push_back(key);
            }
            continue;
        }
        if (key == std::byte{'x'}) handlers_.quit();
        if (key == std::byte{'p'}) handlers_.toggle_pause();
        if (key == prefix_key) waiting_.push_back(key);
    }
}

void Console::offer() {
    if (!terminal_) return;
    give();
    const bool is_polled = input_source_.is_active();
    if (!is_polled && waiting_.empty() && !is_input_at_end_) {
        // An input that cannot be waited for: a piece in each turn of the loop, as fast as the guest takes it.
        fill();
        give();
        if (waiting_.empty() && !is_input_at_end_) wake();
        return;
    }
    const bool may_read = waiting_.size() < max_waiting_bytes && !is_input_at_end_;
    if (is_polled)
        static_cast<void>(input_source_.set_events(may_read ? IoEvents::readable : IoEvents::none));
}

void Console::send(std::byte byte) {
    bool must_wake = false;
    {
        const std::lock_guard lock{mutex_};
        if (is_broken_) return;
        if (kept_.size() >= max_kept_bytes) {
            constexpr std::size_t piece = max_kept_bytes / 16;
            kept_.erase(kept_.begin(), kept_.begin() + piece);
            lost_ += piece;
        }
        must_wake = kept_.empty();
        kept_.push_back(byte);
        if (must_wake) write_kept();
        must_wake = must_wake && !kept_.empty();
    }
    if (must_wake) wake();
}

void Console::send(std::string_view text) {
    for (const char letter : text) send(static_cast<std::byte>(letter));
}

void Console::write_kept() {
    if (kept_.empty() || is_broken_) return;
    const auto count = write_without_waiting(output_, kept_);
    if (!count) {
        is_broken_ = true;
        kept_.clear();
        return;
    }
    kept_.erase(kept_.begin(), kept_.begin() + static_cast<std::ptrdiff_t>(*count));
}

void Console::flush(int timeout_ms) {
    for (int passed_ms = 0;; ++passed_ms) {
        {
            const std::lock_guard lock{mutex_};
            write_kept();
            if (kept_.empty()) return;
        }
        if (passed_ms >= timeout_ms) return;
        std::this_thread::sleep_for(std::chrono::milliseconds{1});
    }
}

std::uint64_t Console::count_lost() const {
    const std::lock_guard lock{mutex_};
    return lost_;
}

}  // namespace guestmem::cli
