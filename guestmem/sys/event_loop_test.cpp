// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/event_loop.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/unix_socket.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using testing::eventually;
using testing::for_each_fault;
using testing::LoopThread;

static_assert(!std::is_copy_constructible_v<EventSource> && !std::is_copy_constructible_v<EventLoop>);

/// Rounds of a loop that has nothing to wait for.
void run_rounds(EventLoop& loop, int count = 5) {
    for (int i = 0; i < count; ++i) ASSERT_TRUE(loop.run_once(0));
}

EventFd rung_bell() {
    EventFd bell = EventFd::create().value();
    EXPECT_TRUE(bell.ring());
    return bell;
}

TEST(EventLoop, CallsTheHandlerWhileADescriptorIsReadable) {
    EventLoop loop = EventLoop::create().value();
    const EventFd bell = EventFd::create().value();
    int count = 0;
    const auto source = loop.add_io(bell.view(), IoEvents::readable,
                                    [&](IoEvents events) {
                                        EXPECT_EQ(events, IoEvents::readable);
                                        if (++count == 2) {
                                            EXPECT_TRUE(bell.drain());
                                        }
                                    })
                            .value();

    run_rounds(loop);
    EXPECT_EQ(count, 0);
    ASSERT_TRUE(bell.ring());
    run_rounds(loop);

    EXPECT_EQ(count, 2);
    EXPECT_TRUE(source.is_active());
}

TEST(EventLoop, TellsReadableFromWritable) {
    EventLoop loop = EventLoop::create().value();
    const auto [left, right] = UnixStream::pair().value();
    std::vector<IoEvents> seen;
    auto source =
        loop.add_io(left.view(), IoEvents::both, [&](IoEvents events) { seen.push_back(events); }).value();

    run_rounds(loop, 2);
    ASSERT_TRUE(right.send(std::as_bytes(std::span{"x", 1})));
    run_rounds(loop, 1);
    for (int turn = 0; turn < 100 && seen.back() == IoEvents::writable; ++turn) run_rounds(loop, 1);

    EXPECT_EQ(seen.front(), IoEvents::writable);
    EXPECT_EQ(seen.back(), IoEvents::both);
}

TEST(EventLoop, TellsAChangeOnce) {
    EventLoop loop = EventLoop::create().value();
    const auto [left, right] = UnixStream::pair().value();
    int count = 0;
    const auto source =
        loop.add_io(left.view(), IoEvents::both_on_change, [&](IoEvents) { ++count; }).value();

    run_rounds(loop);
    EXPECT_EQ(count, 1);
    ASSERT_TRUE(right.send(std::as_bytes(std::span{"x", 1})));
    run_rounds(loop);

    EXPECT_EQ(count, 2);
}

TEST(EventLoop, AHangUpArrivesAsReadableEvenWhenThatWasNotAsked) {
    EventLoop loop = EventLoop::create().value();
    auto [left, right] = UnixStream::pair().value();
    bool is_readable = false;
    const auto source =
        loop.add_io(left.view(), IoEvents::writable,
                    [&](IoEvents events) { is_readable = has_any(events, IoEvents::readable); })
            .value();

    right = UnixStream{};
    run_rounds(loop);

    EXPECT_TRUE(is_readable);
}

TEST(EventLoop, AHangUpWaitsUntilSomethingIsAsked) {
    EventLoop loop = EventLoop::create().value();
    auto [left, right] = UnixStream::pair().value();
    int count = 0;
    auto source = loop.add_io(left.view(), IoEvents::none, [&](IoEvents) { ++count; }).value();

    right = UnixStream{};
    run_rounds(loop);
    EXPECT_EQ(count, 0);

    ASSERT_TRUE(source.set_events(IoEvents::readable));
    run_rounds(loop);
    const int before = count;
    EXPECT_GT(before, 0);
    ASSERT_TRUE(source.set_events(IoEvents::none));
    ASSERT_TRUE(source.set_events(IoEvents::none));
    run_rounds(loop);
    EXPECT_EQ(count, before);
}

TEST(EventSource, ChangesWhatItWaitsFor) {
    EventLoop loop = EventLoop::create().value();
    const EventFd bell = rung_bell();
    int count = 0;
    auto source = loop.add_io(bell.view(), IoEvents::none, [&](IoEvents) { ++count; }).value();

    run_rounds(loop);
    EXPECT_EQ(count, 0);
    ASSERT_TRUE(source.set_events(IoEvents::readable));
    run_rounds(loop, 2);
    EXPECT_GT(count, 0);
    const int before = count;
    ASSERT_TRUE(source.set_events(IoEvents::none));
    run_rounds(loop);

    EXPECT_EQ(count, before);
}

TEST(EventSource, ThatRestsLeavesItsDescriptorToAnother) {
    EventLoop loop = EventLoop::create().value();
    const EventFd bell = rung_bell();
    int count = 0;
    auto resting = loop.add_io(bell.view(), IoEvents::none, [](IoEvents) {}).value();
    const auto waiting = loop.add_io(bell.view(), IoEvents::readable, [&](IoEvents) { ++count; }).value();

    EXPECT_FALSE(resting.set_events(IoEvents::readable));
    resting = EventSource{};
    run_rounds(loop, 1);

    EXPECT_EQ(count, 1);
}

TEST(EventSource, ThatAnotherPutToRestIsNotCalledInTheSameRound) {
    EventLoop loop = EventLoop::create().value();
    const EventFd one = rung_bell();
    const EventFd two = rung_bell();
    EventSource first;
    EventSource second;
    int count = 0;
    const auto put_to_rest = [&](EventSource& other) {
        ++count;
        EXPECT_TRUE(other.set_events(IoEvents::none));
    };
    first = loop.add_io(one.view(), IoEvents::readable, [&](IoEvents) { put_to_rest(second); }).value();
    second = loop.add_io(two.view(), IoEvents::readable, [&](IoEvents) { put_to_rest(first); }).value();

    run_rounds(loop, 1);

    EXPECT_EQ(count, 1);
}

TEST(EventSource, RefusesWhatItIsNotFor) {
    EventLoop loop = EventLoop::create().value();
    const EventFd bell = EventFd::create().value();
    EventSource none;
    auto timer = loop.add_timer(1'000'000, [] {}).value();
    auto io = loop.add_io(bell.view(), IoEvents::readable, [](IoEvents) {}).value();

    EXPECT_EQ(none.set_events(IoEvents::readable).error().code(), Errc::unavailable);
    EXPECT_EQ(none.restart(0).error().code(), Errc::unavailable);
    EXPECT_EQ(timer.set_events(IoEvents::readable).error().code(), Errc::invalid_argument);
    EXPECT_EQ(io.restart(0).error().code(), Errc::invalid_argument);
    run_rounds(loop);
}

TEST(EventSource, EndsTheWaitingWhenItGoes) {
    EventLoop loop = EventLoop::create().value();
    const EventFd bell = rung_bell();
    int count = 0;
    {
        const auto source = loop.add_io(bell.view(), IoEvents::readable, [&](IoEvents) { ++count; }).value();
    }

    run_rounds(loop);

    EXPECT_EQ(count, 0);
}

TEST(EventSource, MayBeDestroyedInItsOwnHandler) {
    EventLoop loop = EventLoop::create().value();
    const EventFd bell = rung_bell();
    EventSource source;
    // Longer than a string's own room, so that a sanitizer sees a capture that is gone.
    const std::string text(100, 'x');
    std::string seen;
    source = loop.add_io(bell.view(), IoEvents::readable,
                         [&, text](IoEvents) {
                             source = EventSource{};
                             seen += text;
                         })
                 .value();

    run_rounds(loop);

    EXPECT_EQ(seen, text);
    EXPECT_FALSE(source.is_active());
}

TEST(EventSource, MayBeDestroyedInAnothersHandler) {
    EventLoop loop = EventLoop::create().value();
    const EventFd one = rung_bell();
    const EventFd two = rung_bell();
    EventSource first;
    EventSource second;
    int count = 0;
    // Both are ready in the same round: whichever comes first ends the other.
    first = loop.add_io(one.view(), IoEvents::readable,
                        [&](IoEvents) {
                            ++count;
                            second = EventSource{};
                        })
                .value();
    second = loop.add_io(two.view(), IoEvents::readable,
                         [&](IoEvents) {
                             ++count;
                             first = EventSource{};
                         })
                 .value();

    run_rounds(loop, 1);
    EXPECT_EQ(count, 1);
    EXPECT_NE(first.is_active(), second.is_active());
}

TEST(EventLoop, ServesALateDescriptorAfterTheOthers) {
    EventLoop loop = EventLoop::create().value();
    const EventFd late_bell = rung_bell();
    const EventFd bell = rung_bell();
    std::vector<std::string> order;
    const auto late = loop.add_io(
                              late_bell.view(), IoEvents::readable,
                              [&](IoEvents) {
                                  order.emplace_back("late");
                                  EXPECT_TRUE(late_bell.drain());
                              },
                              Turn::late)
                          .value();
    int left = 3;
    const auto normal = loop.add_io(bell.view(), IoEvents::readable,
                                    [&](IoEvents) {
                                        order.emplace_back("normal");
                                        if (--left == 0) {
                                            EXPECT_TRUE(bell.drain());
                                        }
                                    })
                            .value();

    run_rounds(loop, 8);

    EXPECT_THAT(order, ElementsAre("normal", "normal", "normal", "late"));
}

/// The round, counted from 1, in which a late descriptor is served first; 0 when it is not within that many.
int first_late_round(EventLoop& loop, int rounds) {
    const EventFd bell = rung_bell();
    bool is_served = false;
    const auto late =
        loop.add_io(bell.view(), IoEvents::readable, [&](IoEvents) { is_served = true; }, Turn::late).value();
    for (int round = 1; round <= rounds; ++round) {
        EXPECT_TRUE(loop.run_once(0));
        if (is_served) return round;
    }
    return 0;
}

TEST(EventLoop, ServesALateDescriptorThoughAnotherIsReadyInEachRound) {
    EventLoop loop = EventLoop::create().value();
    const EventFd bell = rung_bell();
    const auto busy = loop.add_io(bell.view(), IoEvents::readable, [](IoEvents) {}).value();

    EXPECT_EQ(first_late_round(loop, 10 * max_rounds_without_late), max_rounds_without_late);
    // The rounds are counted from where it began to wait.
    run_rounds(loop, max_rounds_without_late / 2);
    EXPECT_EQ(first_late_round(loop, 10 * max_rounds_without_late), max_rounds_without_late);
}

TEST(EventLoop, ServesALateDescriptorThoughATimerIsDueInEachRound) {
    EventLoop loop = EventLoop::create().value();
    EventSource timer;
    timer = loop.add_timer(0, [&] { EXPECT_TRUE(timer.restart(0)); }).value();

    EXPECT_GT(first_late_round(loop, 10 * max_rounds_without_late), 0);
}

TEST(EventLoop, ServesManyLateDescriptorsAfterTheOthers) {
    EventLoop loop = EventLoop::create().value();
    std::vector<EventFd> bells;
    std::vector<EventSource> sources;
    std::vector<std::string> order;
    // More than the kernel names in three batches.
    for (int i = 0; i < 200; ++i) {
        const FdView bell = bells.emplace_back(rung_bell()).view();
        const auto serve = [&](IoEvents) { order.emplace_back("late"); };
        sources.push_back(loop.add_io(bell, IoEvents::readable, serve, Turn::late).value());
    }
    const EventFd bell = rung_bell();
    const auto normal = loop.add_io(bell.view(), IoEvents::readable,
                                    [&](IoEvents) {
                                        order.emplace_back("normal");
                                        EXPECT_TRUE(bell.drain());
                                    })
                            .value();

    run_rounds(loop, 3);

    EXPECT_THAT(order, ElementsAre("normal", "late", "late"));
}

TEST(EventLoop, ALateDescriptorIsInTheLineOnce) {
    EventLoop loop = EventLoop::create().value();
    const std::array<EventFd, 2> late_bells{rung_bell(), rung_bell()};
    const EventFd bell = rung_bell();
    std::vector<EventSource> late;
    std::array<int, 2> counts{};
    for (std::size_t i = 0; i < 2; ++i) {
        const auto serve = [&counts, i](IoEvents) { ++counts.at(i); };
        late.push_back(loop.add_io(late_bells.at(i).view(), IoEvents::readable, serve, Turn::late).value());
    }
    int left = 10;
    const auto normal = loop.add_io(bell.view(), IoEvents::readable,
                                    [&](IoEvents) {
                                        EXPECT_TRUE(late.front().set_events(IoEvents::readable));
                                        if (--left == 0) {
                                            EXPECT_TRUE(bell.drain());
                                        }
                                    })
                            .value();

    run_rounds(loop, 10);
    EXPECT_THAT(counts, ElementsAre(0, 0));
    // Of those that are ready at once each has its turn.
    run_rounds(loop, 10);

    EXPECT_GE(counts[0], 4);
    EXPECT_GE(counts[1], 4);
}

TEST(EventLoop, ATimerFiresOnceAndNotEarly) {
    EventLoop loop = EventLoop::create().value();
    const auto begin = std::chrono::steady_clock::now();
    int count = 0;
    const auto timer = loop.add_timer(20, [&] { ++count; }).value();

    while (count == 0) ASSERT_TRUE(loop.run_once(1'000));
    const auto passed = std::chrono::steady_clock::now() - begin;
    ASSERT_TRUE(loop.run_once(30));

    EXPECT_GE(passed, std::chrono::milliseconds{20});
    EXPECT_EQ(count, 1);
}

TEST(EventLoop, ATimerIsRestartedInItsOwnHandler) {
    EventLoop loop = EventLoop::create().value();
    EventSource timer;
    int count = 0;
    timer = loop.add_timer(1,
                           [&] {
                               if (++count < 3) {
                                   EXPECT_TRUE(timer.restart(1));
                               }
                               if (count == 3) loop.stop();
                           })
                .value();

    ASSERT_TRUE(loop.run());

    EXPECT_EQ(count, 3);
}

TEST(EventLoop, StopEndsRunAfterTheHandler) {
    EventLoop loop = EventLoop::create().value();
    bool went_on = false;
    const auto timer = loop.add_timer(0,
                                      [&] {
                                          loop.stop();
                                          went_on = true;
                                      })
                           .value();

    ASSERT_TRUE(loop.run());

    EXPECT_TRUE(went_on);
}

TEST(EventLoop, NowMovesWithTheClock) {
    EventLoop loop = EventLoop::create().value();
    run_rounds(loop, 1);
    const std::uint64_t before = loop.now_ms();
    ASSERT_TRUE(loop.run_once(15));
    EXPECT_GT(before, 0U);
    EXPECT_GE(loop.now_ms(), before + 14);
}

TEST(EventLoop, HearsABlockedSignal) {
    ASSERT_TRUE(block_signal(SIGUSR1));
    EventLoop loop = EventLoop::create().value();
    int count = 0;
    const auto source = loop.add_signal(SIGUSR1, [&] { ++count; }).value();

    ASSERT_EQ(::pthread_kill(::pthread_self(), SIGUSR1), 0);
    for (int turn = 0; turn < 100 && count == 0; ++turn) ASSERT_TRUE(loop.run_once(100));

    EXPECT_EQ(count, 1);
}

TEST(EventLoop, RefusesASignalThatIsNotBlocked) {
    EventLoop loop = EventLoop::create().value();
    EXPECT_FALSE(loop.add_signal(SIGUSR2, [] {}));
}

TEST(EventLoop, RefusesAClosedDescriptorAndTheSameOneTwice) {
    EventLoop loop = EventLoop::create().value();
    const EventFd bell = EventFd::create().value();
    const auto source = loop.add_io(bell.view(), IoEvents::readable, [](IoEvents) {});

    EXPECT_TRUE(source);
    EXPECT_FALSE(loop.add_io(bell.view(), IoEvents::readable, [](IoEvents) {}));
    EXPECT_FALSE(loop.add_io(FdView{}, IoEvents::readable, [](IoEvents) {}));
}

TEST(EventLoop, RunsInAThreadOfItsOwn) {
    LoopThread loop;
    std::atomic<int> count{0};
    const EventFd bell = EventFd::create().value();
    auto source = loop.call([&](EventLoop& inner) {
        return inner.add_io(bell.view(), IoEvents::readable, [&](IoEvents) {
            ++count;
            EXPECT_TRUE(bell.drain());
        });
    });
    ASSERT_TRUE(source);

    ASSERT_TRUE(bell.ring());

    EXPECT_TRUE(eventually([&] { return count == 1; }));
    loop.call([&](EventLoop&) { *source = EventSource{}; });
}

TEST(EventLoop, WhateverFailsNothingIsLeft) {
    const EventFd bell = EventFd::create().value();
    const auto count = for_each_fault([&]() -> Result<void> {
        EventLoop loop = GM_TRY(EventLoop::create());
        EventSource io = GM_TRY(loop.add_io(bell.view(), IoEvents::readable, [](IoEvents) {}, Turn::late));
        EventSource timer = GM_TRY(loop.add_timer(1, [] {}));
        GM_TRY(io.set_events(IoEvents::both));
        GM_TRY(io.set_events(IoEvents::none));
        GM_TRY(io.set_events(IoEvents::readable));
        GM_TRY(timer.restart(5));
        return {};
    });
    EXPECT_EQ(count, 7U);
}

}  // namespace
}  // namespace guestmem
