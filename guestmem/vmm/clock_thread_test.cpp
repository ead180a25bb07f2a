// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/clock_thread.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <memory>
#include <vector>

namespace guestmem::vmm {
namespace {

constexpr auto patience = std::chrono::seconds{20};
constexpr std::uint64_t ms = 1'000'000;

TEST(ClockThread, StandsStillUntilItIsResumed) {
    ClockThread clock;
    EXPECT_EQ(clock.now_ns(), 0U);
    clock.resume();
    while (clock.now_ns() < ms) std::this_thread::yield();
    clock.pause();
    const std::uint64_t stood = clock.now_ns();
    std::this_thread::sleep_for(std::chrono::milliseconds{2});
    EXPECT_EQ(clock.now_ns(), stood);
    clock.resume();
    while (clock.now_ns() == stood) std::this_thread::yield();
    EXPECT_GT(clock.now_ns(), stood);
}

TEST(ClockThread, RingsAlarmsInTheOrderOfTheirTimesAndNotEarly) {
    ClockThread clock;
    std::mutex mutex;
    std::vector<int> rung;
    std::vector<std::uint64_t> when;
    std::promise<void> all;
    const auto ring = [&](int number) {
        const std::lock_guard lock{mutex};
        rung.push_back(number);
        when.push_back(clock.now_ns());
        if (rung.size() == 3) all.set_value();
    };
    const auto third = clock.make_alarm([&] { ring(3); });
    const auto first = clock.make_alarm([&] { ring(1); });
    const auto second = clock.make_alarm([&] { ring(2); });
    third->set(3 * ms);
    first->set(1 * ms);
    second->set(2 * ms);
    clock.resume();
    ASSERT_EQ(all.get_future().wait_for(patience), std::future_status::ready);
    const std::lock_guard lock{mutex};
    EXPECT_EQ(rung, (std::vector<int>{1, 2, 3}));
    for (std::size_t at = 0; at < when.size(); ++at) EXPECT_GE(when[at], (at + 1) * ms);
}

TEST(ClockThread, AnAlarmOfThePastRingsAtOnceAndOneThatWasUnsetDoesNot) {
    ClockThread clock;
    clock.resume();
    std::promise<void> rung;
    std::atomic<bool> has_rung_wrongly{false};
    const auto unset = clock.make_alarm([&] { has_rung_wrongly = true; });
    unset->set(clock.now_ns() + 1'000'000 * ms);
    unset->set(std::nullopt);
    const auto past = clock.make_alarm([&] { rung.set_value(); });
    past->set(0);
    ASSERT_EQ(rung.get_future().wait_for(patience), std::future_status::ready);
    EXPECT_FALSE(has_rung_wrongly);
}

TEST(ClockThread, AHandlerMaySetItsAlarmAgain) {
    ClockThread clock;
    clock.resume();
    std::promise<void> done;
    int count = 0;
    std::unique_ptr<DeviceAlarm> alarm;
    alarm = clock.make_alarm([&] {
        if (++count == 5) {
            done.set_value();
        } else {
            alarm->set(clock.now_ns());
        }
    });
    alarm->set(0);
    ASSERT_EQ(done.get_future().wait_for(patience), std::future_status::ready);
}

TEST(ClockThread, AHandlerMayDestroyItsAlarm) {
    ClockThread clock;
    clock.resume();
    std::promise<void> done;
    std::unique_ptr<DeviceAlarm> alarm;
    alarm = clock.make_alarm([&] {
        alarm.reset();
        done.set_value();
    });
    alarm->set(0);
    ASSERT_EQ(done.get_future().wait_for(patience), std::future_status::ready);
}

TEST(ClockThread, DestroyingAnAlarmWaitsForItsHandler) {
    ClockThread clock;
    clock.resume();
    std::promise<void> began;
    std::atomic<bool> has_ended{false};
    auto alarm = clock.make_alarm([&] {
        began.set_value();
        std::this_thread::sleep_for(std::chrono::milliseconds{20});
        has_ended = true;
    });
    alarm->set(0);
    ASSERT_EQ(began.get_future().wait_for(patience), std::future_status::ready);
    alarm.reset();
    EXPECT_TRUE(has_ended);
}

TEST(ClockThread, NoHandlerRunsAfterAPause) {
    ClockThread clock;
    std::atomic<int> count{0};
    std::unique_ptr<DeviceAlarm> alarm;
    alarm = clock.make_alarm([&] {
        ++count;
        alarm->set(clock.now_ns());
    });
    alarm->set(0);
    clock.resume();
    while (count == 0) std::this_thread::yield();
    clock.pause();
    const int seen = count;
    std::this_thread::sleep_for(std::chrono::milliseconds{2});
    EXPECT_EQ(count, seen);
}

TEST(ClockThread, AlarmsMayOutliveIt) {
    auto clock = std::make_unique<ClockThread>();
    clock->resume();
    const auto alarm = clock->make_alarm([] {});
    clock.reset();
    alarm->set(0);
}

}  // namespace
}  // namespace guestmem::vmm
