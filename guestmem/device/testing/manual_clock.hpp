// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/device/device_clock.hpp"

/// A device clock whose time a test moves by hand.
///
/// Contract: advance_to() rings alarms in the order of their times, in the calling thread, with the clock at the
/// alarm's time; an alarm that its handler sets again within the span rings again. An alarm set to a time that has
/// passed rings at the next advance, be it by 0. What DeviceClock promises of destroying an alarm holds.
/// Threads: any; one at a time advances.
/// Limits: at most max_rings alarms in one advance, so that a periodic device of period 0 ends a test, not a day.
/// Lifetime: alarms may outlive the clock.
/// Example:
///     ManualClock clock;
///     ...the device sets an alarm...
///     clock.advance(1'000'000);

namespace guestmem::testing {

class ManualClock final : public DeviceClock {
public:
    static constexpr std::size_t max_rings = 1'000'000;

    [[nodiscard]] std::uint64_t now_ns() const override {
        const std::scoped_lock lock{state_->mutex};
        return state_->now_ns;
    }
    [[nodiscard]] std::unique_ptr<DeviceAlarm> make_alarm(std::function<void()> handler) override {
        auto entry = std::make_shared<Entry>();
        entry->handler = std::move(handler);
        const std::scoped_lock lock{state_->mutex};
        state_->entries.push_back(entry);
        return std::make_unique<Alarm>(state_, std::move(entry));
    }

    /// How many alarms rang.
    std::size_t advance(std::uint64_t by_ns) { return advance_to(now_ns() + by_ns); }
    std::size_t advance_to(std::uint64_t when_ns) {
        std::size_t count_rings = 0;
        std::unique_lock lock{state_->mutex};
        while (count_rings < max_rings) {
            std::shared_ptr<Entry> due = state_->earliest_until(when_ns);
            if (!due) break;
            state_->now_ns = std::max(state_->now_ns, *due->when_ns);
            due->when_ns.reset();
            state_->running = due;
            state_->runner = std::this_thread::get_id();
            lock.unlock();
            due->handler();
            ++count_rings;
            lock.lock();
            state_->running.reset();
            state_->changed.notify_all();
        }
        state_->now_ns = std::max(state_->now_ns, when_ns);
        return count_rings;
    }
    /// When the next alarm rings; nothing when none is set.
    [[nodiscard]] std::optional<std::uint64_t> next_ns() const {
        const std::scoped_lock lock{state_->mutex};
        const auto next = state_->earliest_until(UINT64_MAX);
        return next ? next->when_ns : std::nullopt;
    }

private:
    struct Entry {
        std::function<void()> handler;
        std::optional<std::uint64_t> when_ns;
    };
    struct State {
        [[nodiscard]] std::shared_ptr<Entry> earliest_until(std::uint64_t last_ns) const {
            std::shared_ptr<Entry> earliest;
            for (const auto& entry : entries) {
                if (!entry->when_ns || *entry->when_ns > last_ns) continue;
                if (!earliest || *entry->when_ns < *earliest->when_ns) earliest = entry;
            }
            return earliest;
        }
        mutable std::mutex mutex;
        std::condition_variable changed;
        std::uint64_t now_ns = 0;
        std::vector<std::shared_ptr<Entry>> entries;
        std::shared_ptr<Entry> running;
        std::thread::id runner;
    };
    class Alarm final : public DeviceAlarm {
    public:
        Alarm(std::shared_ptr<State> state, std::shared_ptr<Entry> entry)
            : state_(std::move(state)), entry_(std::move(entry)) {}
        Alarm(const Alarm&) = delete;
        Alarm& operator=(const Alarm&) = delete;
        ~Alarm() override {
            std::unique_lock lock{state_->mutex};
            std::erase(state_->entries, entry_);
            state_->changed.wait(lock, [this] {
                return state_->running != entry_ || state_->runner == std::this_thread::get_id();
            });
        }
        void set(std::optional<std::uint64_t> when_ns) override {
            const std::scoped_lock lock{state_->mutex};
            entry_->when_ns = when_ns;
        }

    private:
        std::shared_ptr<State> state_;
        std::shared_ptr<Entry> entry_;
    };

    std::shared_ptr<State> state_ = std::make_shared<State>();
};

}  // namespace guestmem::testing
