// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/clock_thread.hpp"

#include <algorithm>
#include <set>
#include <utility>

namespace guestmem::vmm {
namespace {

using Steady = std::chrono::steady_clock;

/// What is waited for at once, so that a time far away does not overflow the clock's.
constexpr std::uint64_t longest_wait_ns = 3'600'000'000'000;

}  // namespace

struct ClockThread::State {
    std::mutex mutex;
    std::condition_variable changed;
    std::set<std::pair<std::uint64_t, Alarm*>> alarms;  ///< by time
    Alarm* ringing = nullptr;
    bool is_handling = false;  ///< longer than `ringing` when a handler destroys its alarm
    std::thread::id thread;
    std::uint32_t pauses = 1;
    std::uint64_t stood_at_ns = 0;  ///< the time while it is paused
    Steady::time_point began;       ///< when it was 0, while it is not
    bool is_ending = false;

    [[nodiscard]] std::uint64_t now_ns() const {
        if (pauses != 0) return stood_at_ns;
        const auto passed = std::chrono::duration_cast<std::chrono::nanoseconds>(Steady::now() - began);
        return static_cast<std::uint64_t>(passed.count());
    }
};

class ClockThread::Alarm final : public DeviceAlarm {
public:
    Alarm(std::shared_ptr<State> state, std::function<void()> handler)
        : state_(std::move(state)), handler_(std::move(handler)) {}

    ~Alarm() override {
        std::unique_lock lock{state_->mutex};
        forget();
        if (std::this_thread::get_id() == state_->thread) {
            if (state_->ringing == this) state_->ringing = nullptr;
            return;
        }
        state_->changed.wait(lock, [this] { return state_->ringing != this; });
    }

    void set(std::optional<std::uint64_t> when_ns) override {
        const std::lock_guard lock{state_->mutex};
        forget();
        when_ns_ = when_ns;
        if (!when_ns_) return;
        const auto place = state_->alarms.emplace(*when_ns_, this).first;
        if (place == state_->alarms.begin()) state_->changed.notify_all();
    }

    /// With the mutex held.
    void forget() {
        if (when_ns_) state_->alarms.erase({*when_ns_, this});
        when_ns_.reset();
    }
    [[nodiscard]] std::function<void()> handler() const { return handler_; }

private:
    std::shared_ptr<State> state_;
    std::function<void()> handler_;
    std::optional<std::uint64_t> when_ns_;
};

ClockThread::ClockThread() : state_(std::make_shared<State>()) {
    const std::lock_guard lock{state_->mutex};
    thread_ = std::thread{[state = state_] { run(state); }};
    state_->thread = thread_.get_id();
}

ClockThread::~ClockThread() {
    {
        const std::lock_guard lock{state_->mutex};
        state_->is_ending = true;
    }
    state_->changed.notify_all();
    thread_.join();
}

std::uint64_t ClockThread::now_ns() const {
    const std::lock_guard lock{state_->mutex};
    return state_->now_ns();
}

std::unique_ptr<DeviceAlarm> ClockThread::make_alarm(std::function<void()> handler) {
    return std::make_unique<Alarm>(state_, std::move(handler));
}

void ClockThread::pause() {
    std::unique_lock lock{state_->mutex};
    if (state_->pauses == 0) state_->stood_at_ns = state_->now_ns();
    ++state_->pauses;
    state_->changed.wait(lock, [this] { return !state_->is_handling; });
}

void ClockThread::resume() {
    {
        const std::lock_guard lock{state_->mutex};
        if (state_->pauses == 0 || --state_->pauses != 0) return;
        state_->began = Steady::now() - std::chrono::nanoseconds{state_->stood_at_ns};
    }
    state_->changed.notify_all();
}

void ClockThread::run(const std::shared_ptr<State>& state) {
    std::unique_lock lock{state->mutex};
    while (!state->is_ending) {
        if (state->pauses != 0 || state->alarms.empty()) {
            state->changed.wait(lock);
            continue;
        }
        const auto [when_ns, alarm] = *state->alarms.begin();
        const std::uint64_t now_ns = state->now_ns();
        if (when_ns > now_ns) {
            const std::uint64_t wait_ns = std::min(when_ns - now_ns, longest_wait_ns);
            state->changed.wait_for(lock, std::chrono::nanoseconds{wait_ns});
            continue;
        }
        alarm->forget();
        state->ringing = alarm;
        state->is_handling = true;
        const auto handler = alarm->handler();
        lock.unlock();
        handler();
        lock.lock();
        state->ringing = nullptr;
        state->is_handling = false;
        state->changed.notify_all();
    }
}

}  // namespace guestmem::vmm
