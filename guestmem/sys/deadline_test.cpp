// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/deadline.hpp"

#include <gtest/gtest.h>
#include <pthread.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <span>
#include <thread>

#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/unix_socket.hpp"

namespace guestmem {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

TEST(Deadline, CountsDownToZeroAndNoFurther) {
    EXPECT_TRUE(Deadline{0ms}.has_passed());
    EXPECT_EQ(Deadline{-5s}.left(), 0ms);
    const Deadline far{1h};
    EXPECT_FALSE(far.has_passed());
    EXPECT_LE(far.left(), 1h);
    EXPECT_GT(far.left(), 59min);
}

TEST(Deadline, TheLongestWaitsDoNotWrap) {
    EXPECT_GT(Deadline{std::chrono::milliseconds::max()}.left(), Deadline::farthest - 1h);
    EXPECT_TRUE(Deadline{std::chrono::milliseconds::min()}.has_passed());
}

TEST(Deadline, IsExtendedAndNeverShortened) {
    Deadline deadline{1h};
    deadline.extend(1h);
    EXPECT_GT(deadline.left(), 119min);
    EXPECT_LE(deadline.left(), 2h);
    deadline.extend(-1h);
    EXPECT_GT(deadline.left(), 119min);
    for (int again = 0; again < 10; ++again) deadline.extend(Clock::duration::max());
    EXPECT_GT(deadline.left(), Deadline::farthest - 1h);
    EXPECT_LE(deadline.left(), Deadline::farthest);
    deadline.extend(Clock::duration::min());
    EXPECT_GT(deadline.left(), Deadline::farthest - 1h);
}

TEST(Deadline, ThatHasPassedIsExtendedFromItsMoment) {
    Deadline passed{-2h};
    passed.extend(1h);
    EXPECT_TRUE(passed.has_passed());
    passed.extend(2h);
    EXPECT_FALSE(passed.has_passed());
}

TEST(Deadline, SaysWhatIsReadyEvenWhenItHasPassed) {
    const auto [left, right] = UnixStream::pair().value();
    EXPECT_TRUE(*wait_writable(left.view(), Deadline{0ms}));
    EXPECT_FALSE(*wait_readable(right.view(), Deadline{0ms}));
    ASSERT_TRUE(left.send(std::as_bytes(std::span{"x"})));
    EXPECT_TRUE(*wait_readable(right.view(), Deadline{0ms}));
}

TEST(Deadline, AHangUpIsReadable) {
    auto [left, right] = UnixStream::pair().value();
    left = UnixStream{};
    EXPECT_TRUE(*wait_readable(right.view(), Deadline{10s}));
}

TEST(Deadline, WaitsUntilTheMoment) {
    const auto [left, right] = UnixStream::pair().value();
    const auto begin = Clock::now();
    EXPECT_FALSE(*wait_readable(right.view(), Deadline{50ms}));
    EXPECT_GE(Clock::now() - begin, 50ms);
}

TEST(Deadline, SignalsDoNotMakeAWaitLonger) {
    struct sigaction handler{};
    struct sigaction before{};
    handler.sa_handler = [](int) {};
    ASSERT_EQ(::sigaction(SIGUSR2, &handler, &before), 0);
    const auto [left, right] = UnixStream::pair().value();
    std::atomic<bool> is_over{false};
    const pthread_t waiter = ::pthread_self();
    std::thread nagger{[&] {
        while (!is_over) {
            ::pthread_kill(waiter, SIGUSR2);
            std::this_thread::sleep_for(5ms);
        }
    }};

    const auto begin = Clock::now();
    EXPECT_FALSE(*wait_readable(right.view(), Deadline{100ms}));
    EXPECT_LT(Clock::now() - begin, 5s);

    is_over = true;
    nagger.join();
    ::sigaction(SIGUSR2, &before, nullptr);
}

TEST(Deadline, AWaitThatTheKernelRefusesIsAnError) {
    const auto [left, right] = UnixStream::pair().value();
    EXPECT_EQ(testing::for_each_fault([&] { return wait_writable(left.view(), Deadline{1s}); }), 1U);
}

}  // namespace
}  // namespace guestmem
