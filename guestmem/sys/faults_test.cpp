// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/faults.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <string_view>
#include <thread>
#include <vector>

namespace guestmem {
namespace {

int good_call(SysCall call) {
    return checked_call(call, [] { return 7; });
}

TEST(SysCall, EveryCallHasANameOfItsOwnAndAnErrno) {
    std::set<std::string_view> names;
    for (unsigned i = 0; i < static_cast<unsigned>(SysCall::count); ++i) {
        const auto call = static_cast<SysCall>(i);
        EXPECT_TRUE(names.insert(to_string(call)).second) << to_string(call);
        EXPECT_GT(plausible_errno(call), 0) << to_string(call);
    }
}

TEST(CheckedCall, WithoutAnInjectorIsTheCallItself) { EXPECT_EQ(good_call(SysCall::open), 7); }

TEST(CheckedCall, RepeatsAnInterruptedCall) {
    int count_interrupts = 3;
    const int result = checked_call(SysCall::read, [&] {
        if (count_interrupts == 0) return 5;
        --count_interrupts;
        errno = EINTR;
        return -1;
    });
    EXPECT_EQ(result, 5);
}

TEST(CheckedCall, HandsAnErrorOn) {
    const int result = checked_call(SysCall::read, [] {
        errno = EBADF;
        return -1;
    });
    EXPECT_EQ(result, -1);
    EXPECT_EQ(errno, EBADF);
}

TEST(FaultInjector, FailsTheNthCallAndNoOther) {
    FaultInjector injector{1};

    EXPECT_EQ(good_call(SysCall::open), 7);
    EXPECT_FALSE(injector.has_fired());
    EXPECT_EQ(good_call(SysCall::mmap), -1);
    EXPECT_EQ(errno, ENOMEM);
    EXPECT_EQ(good_call(SysCall::open), 7);

    EXPECT_TRUE(injector.has_fired());
    EXPECT_EQ(injector.failed_call(), SysCall::mmap);
}

TEST(FaultInjector, DoesNotMakeTheCallThatItFails) {
    FaultInjector injector{0};
    bool was_called = false;

    const int result = checked_call(SysCall::open, [&] {
        was_called = true;
        return 0;
    });

    EXPECT_EQ(result, -1);
    EXPECT_FALSE(was_called);
}

TEST(FaultInjector, CountsOnlyTheKindItIsToldTo) {
    FaultInjector injector{1, {.only = SysCall::read, .os_error = EISDIR}};

    EXPECT_EQ(good_call(SysCall::write), 7);
    EXPECT_EQ(good_call(SysCall::read), 7);
    EXPECT_EQ(good_call(SysCall::write), 7);
    EXPECT_EQ(good_call(SysCall::read), -1);
    EXPECT_EQ(errno, EISDIR);
}

TEST(FaultInjector, FailsAsManyInARowAsItIsToldTo) {
    FaultInjector injector{1, {.repeat = 2}};

    EXPECT_EQ(good_call(SysCall::open), 7);
    EXPECT_EQ(good_call(SysCall::open), -1);
    EXPECT_EQ(good_call(SysCall::open), -1);
    EXPECT_EQ(good_call(SysCall::open), 7);
}

TEST(FaultInjector, IsForgottenWhenItGoes) {
    {
        const FaultInjector injector{0};
    }
    EXPECT_EQ(good_call(SysCall::open), 7);
}

TEST(FaultInjector, FailsOneCallOfAllThreads) {
    FaultInjector injector{50};
    std::atomic<int> count_failed{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i)
        threads.emplace_back([&] {
            for (int turn = 0; turn < 100; ++turn)
                if (good_call(SysCall::open) < 0) ++count_failed;
        });
    for (std::thread& thread : threads) thread.join();

    EXPECT_EQ(count_failed, 1);
}

TEST(FaultInjectorDeathTest, TwoAtATimeAreOurOwnBug) {
    const FaultInjector first{1};
    EXPECT_DEATH(FaultInjector{2}, "check failed");
}

}  // namespace
}  // namespace guestmem
