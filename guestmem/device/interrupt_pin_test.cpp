// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/interrupt_pin.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "guestmem/device/testing/manual_clock.hpp"
#include "guestmem/device/testing/recording_line.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::ManualClock;
using testing::RecordingLine;

TEST(InterruptPin, IsUpWhileAnyInputIs) {
    const auto line = std::make_shared<RecordingLine>();
    const InterruptPin pin{line};
    const auto first = pin.make_input();
    const auto second = pin.make_input();
    first->set(true);
    second->set(true);
    first->set(false);
    EXPECT_TRUE(line->is_up());
    second->set(false);
    EXPECT_FALSE(line->is_up());
    EXPECT_THAT(line->changes(), ElementsAre(true, false));
}

TEST(InterruptPin, AnInputThatSaysTheSameTwiceCountsOnce) {
    const auto line = std::make_shared<RecordingLine>();
    const InterruptPin pin{line};
    const auto input = pin.make_input();
    input->set(false);
    EXPECT_THAT(line->changes(), IsEmpty());
    input->set(true);
    input->set(true);
    input->set(false);
    EXPECT_FALSE(line->is_up());
    EXPECT_EQ(line->count_calls(), 2U);
}

TEST(InterruptPin, AnInputThatGoesIsDown) {
    const auto line = std::make_shared<RecordingLine>();
    auto pin = std::make_unique<InterruptPin>(line);
    auto input = pin->make_input();
    input->set(true);
    pin.reset();
    EXPECT_TRUE(line->is_up());
    input.reset();
    EXPECT_FALSE(line->is_up());
}

TEST(InterruptPin, APulseWhileAnotherIsUpIsNotSeen) {
    const auto line = std::make_shared<RecordingLine>();
    const InterruptPin pin{line};
    const auto level = pin.make_input();
    const auto edge = pin.make_input();
    level->set(true);
    edge->pulse();
    EXPECT_THAT(line->changes(), ElementsAre(true));
}

TEST(InterruptPin, ManyThreadsLeaveItDown) {
    const auto line = std::make_shared<RecordingLine>();
    const InterruptPin pin{line};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([input = pin.make_input()] {
            for (int round = 0; round < 2000; ++round) input->pulse();
        });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_FALSE(line->is_up());
    EXPECT_EQ(line->count_calls(), line->changes().size()) << "each call was a change, and in order";
}

// The clock that tests of devices use: what they believe of it is proved here.

TEST(ManualClock, RingsInTheOrderOfTimes) {
    ManualClock clock;
    std::vector<std::uint64_t> rings;
    const auto late = clock.make_alarm([&] { rings.push_back(clock.now_ns()); });
    std::unique_ptr<DeviceAlarm> early = clock.make_alarm([&] {
        rings.push_back(clock.now_ns());
        if (clock.now_ns() < 30) early->set(clock.now_ns() + 10);
    });
    late->set(25);
    early->set(10);
    EXPECT_EQ(clock.advance(100), 4U);
    EXPECT_THAT(rings, ElementsAre(10, 20, 25, 30));
    EXPECT_EQ(clock.now_ns(), 100U);
    EXPECT_FALSE(clock.next_ns());
    late->set(5);
    EXPECT_EQ(clock.advance(0), 1U) << "a time that has passed rings";
    EXPECT_EQ(clock.now_ns(), 100U);
}

TEST(ManualClock, AnAlarmThatWasTakenBackOrDestroyedDoesNotRing) {
    ManualClock clock;
    int count = 0;
    const auto taken_back = clock.make_alarm([&] { ++count; });
    auto destroyed = clock.make_alarm([&] { ++count; });
    std::unique_ptr<DeviceAlarm> self_ending = clock.make_alarm([&] {
        ++count;
        self_ending.reset();
    });
    taken_back->set(1);
    destroyed->set(1);
    self_ending->set(1);
    taken_back->set(std::nullopt);
    destroyed.reset();
    clock.advance(10);
    EXPECT_EQ(count, 1);
}

}  // namespace
}  // namespace guestmem
