// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/eventfd.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <thread>

#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"

namespace guestmem {
namespace {

using testing::for_each_fault;
using testing::Resources;

constexpr std::uint64_t full = 0xffff'ffff'ffff'fffe;

void set_blocking(const EventFd& bell) { ASSERT_EQ(::fcntl(bell.view().number(), F_SETFL, 0), 0); }

void fill(const EventFd& bell) {
    ASSERT_EQ(::write(bell.view().number(), &full, sizeof full), static_cast<ssize_t>(sizeof full));
}

TEST(EventFd, CountsRingsAndGivesThemOutOnce) {
    const EventFd bell = EventFd::create().value();

    for (int i = 0; i < 3; ++i) ASSERT_TRUE(bell.ring());

    EXPECT_EQ(*bell.pending(), 3U);
    EXPECT_EQ(*bell.pending(), 3U);
    EXPECT_EQ(*bell.drain(), 3U);
    EXPECT_EQ(*bell.drain(), 0U);
    EXPECT_EQ(*bell.pending(), 0U);
}

TEST(EventFd, IsReadableWhileRung) {
    const EventFd bell = EventFd::create().value();

    EXPECT_FALSE(*poll_readable(bell.view(), 0));
    ASSERT_TRUE(bell.ring());

    EXPECT_TRUE(*poll_readable(bell.view(), 0));
}

TEST(EventFd, ShowsALargeCountWhole) {
    const EventFd bell = EventFd::create().value();
    fill(bell);
    EXPECT_EQ(*bell.pending(), full);
    EXPECT_EQ(*bell.drain(), full);
}

TEST(EventFd, AFullOneIsRungAsItIs) {
    const EventFd bell = EventFd::create().value();
    fill(bell);

    EXPECT_TRUE(bell.ring());

    EXPECT_EQ(*bell.drain(), full);
}

TEST(EventFd, NeitherRingNorDrainWaitsWhenAHolderMadeItBlocking) {
    const EventFd bell = EventFd::create().value();
    set_blocking(bell);

    EXPECT_EQ(*bell.drain(), 0U);
    fill(bell);
    EXPECT_TRUE(bell.ring());
    EXPECT_EQ(*bell.drain(), full);
}

TEST(EventFd, AKickOfAFullOneThatIsNotBlockingIsTakenAsRung) {
    const EventFd bell = EventFd::create().value();
    fill(bell);

    EXPECT_TRUE(bell.kick());

    EXPECT_EQ(*bell.drain(), full);
}

TEST(EventFd, AWaitTakesWhatIsThereAndEndsWithItsTimeWhereNothingIs) {
    const EventFd bell = EventFd::create().value();
    EXPECT_EQ(*bell.wait(0), 0U);
    EXPECT_EQ(*bell.wait(1), 0U);
    for (const int timeout_ms : {0, 1, -1}) {
        ASSERT_TRUE(bell.kick());
        ASSERT_TRUE(bell.kick());
        EXPECT_EQ(*bell.wait(timeout_ms), 2U);
    }
}

TEST(EventFd, AWaitForEverEndsWithAKickOfAnother) {
    const EventFd bell = EventFd::create().value();
    std::thread other{[&] { EXPECT_TRUE(bell.kick()); }};
    EXPECT_EQ(*bell.wait(-1), 1U);
    other.join();
}

TEST(EventFd, AdoptsAnEventfdFromOutside) {
    const EventFd bell = EventFd::adopt(Fd{::eventfd(5, EFD_CLOEXEC)}).value();
    EXPECT_EQ(*bell.drain(), 5U);
}

TEST(EventFd, AdoptsNothingElseAndClosesIt) {
    const Resources before = Resources::look();
    std::array<int, 2> ends{};
    ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);

    const auto pipe = EventFd::adopt(Fd{ends[0]});
    const auto other_end = EventFd::adopt(Fd{ends[1]});
    const auto null = EventFd::adopt(open_file("/dev/null", OpenMode::read_write).value());

    ASSERT_FALSE(pipe);
    EXPECT_EQ(pipe.error().code(), Errc::invalid_argument);
    EXPECT_FALSE(other_end);
    EXPECT_FALSE(null);
    EXPECT_FALSE(EventFd::adopt(Fd{}));
    EXPECT_EQ(Resources::look(), before);
}

TEST(EventFd, WhateverFailsNothingIsLeft) {
    EXPECT_EQ(for_each_fault([] { return EventFd::create(); }), 1U);
    EXPECT_EQ(for_each_fault([] { return EventFd::adopt(Fd{::eventfd(0, EFD_CLOEXEC)}); }), 1U);
}

TEST(EventFd, AFailedCallIsAnErrorAndTheCountStays) {
    const EventFd bell = EventFd::create().value();
    ASSERT_TRUE(bell.ring());
    EXPECT_EQ(for_each_fault([&] { return bell.pending(); }), 3U);
    EXPECT_EQ(*bell.pending(), 1U);
    EXPECT_EQ(for_each_fault([&] { return bell.drain(); }), 1U);
    EXPECT_EQ(for_each_fault([&] { return bell.ring(); }), 2U);
    EXPECT_EQ(*bell.drain(), 1U) << "the round without a fault has rung";
    EXPECT_EQ(for_each_fault([&] { return bell.kick(); }), 1U);
    EXPECT_EQ(for_each_fault([&] { return bell.wait(1000); }), 2U);
    ASSERT_TRUE(bell.kick());
    EXPECT_EQ(*bell.pending(), 1U);
}

TEST(Ringer, RingsEachBell) {
    Ringer ringer = Ringer::create().value();
    const EventFd one = EventFd::create().value();
    const EventFd other = EventFd::create().value();

    ASSERT_TRUE(ringer.ring(one));
    ASSERT_TRUE(ringer.ring(other));
    ASSERT_TRUE(ringer.ring(one));

    EXPECT_EQ(*one.drain(), 2U);
    EXPECT_EQ(*other.drain(), 1U);
}

TEST(Ringer, ThatIsDeferredAsksTheKernelAtTheFirstRing) {
    const EventFd bell = EventFd::create().value();
    Ringer ringer = Ringer::create_deferred().value();
    EXPECT_FALSE(ringer.is_certain());
    ASSERT_TRUE(ringer.ring(bell));
    EXPECT_EQ(ringer.is_certain(), Ringer::create()->is_certain());
    EXPECT_EQ(bell.drain().value(), 1U);

    Ringer refused = Ringer::create_deferred().value();
    {
        const FaultInjector injector{0, {.only = SysCall::aio}};
        EXPECT_TRUE(refused.ring(bell)) << "plainly, then";
    }
    EXPECT_FALSE(refused.is_certain());
    EXPECT_EQ(bell.drain().value(), 1U);
}

TEST(Ringer, DoesNotWaitOnAFullBlockingBell) {
    Ringer ringer = Ringer::create().value();
    const EventFd bell = EventFd::create().value();
    set_blocking(bell);
    fill(bell);

    EXPECT_TRUE(ringer.ring(bell));

    EXPECT_GE(*bell.pending(), full);
}

TEST(Ringer, RingsManyTimesInARow) {
    Ringer ringer = Ringer::create().value();
    const EventFd bell = EventFd::create().value();
    for (int i = 0; i < 1'000; ++i) ASSERT_TRUE(ringer.ring(bell)) << i;
    EXPECT_EQ(*bell.drain(), 1'000U);
}

TEST(Ringer, IsMovedWithItsContext) {
    Ringer first = Ringer::create().value();
    const bool was_certain = first.is_certain();
    const EventFd bell = EventFd::create().value();

    Ringer second{std::move(first)};

    EXPECT_EQ(second.is_certain(), was_certain);
    ASSERT_TRUE(second.ring(bell));
    EXPECT_EQ(*bell.drain(), 1U);
}

TEST(Ringer, WithoutTheKernelsHelpRingsPlainly) {
    const EventFd bell = EventFd::create().value();
    auto ringer = [] {
        FaultInjector injector{0, {.only = SysCall::aio, .os_error = ENOSYS}};
        return Ringer::create();
    }();

    ASSERT_TRUE(ringer) << ringer.error().message();
    EXPECT_FALSE(ringer->is_certain());
    ASSERT_TRUE(ringer->ring(bell));

    EXPECT_EQ(*bell.drain(), 1U);
}

TEST(Ringer, WhateverFailsNothingIsLeft) {
    EXPECT_EQ(for_each_fault([] { return Ringer::create(); }), 2U);
}

TEST(Ringer, KeepsRingingAfterAFault) {
    Ringer ringer = Ringer::create().value();
    if (!ringer.is_certain()) GTEST_SKIP() << "this kernel has no io_setup";
    const EventFd bell = EventFd::create().value();
    // More rounds than the queue of results has room for: one that stays behind must not block later rings.
    for (int turn = 0; turn < 500; ++turn) {
        for (std::uint64_t nth = 0; nth < 2; ++nth) {
            FaultInjector injector{nth, {.only = SysCall::aio}};
            EXPECT_FALSE(ringer.ring(bell));
        }
        ASSERT_TRUE(ringer.ring(bell)) << turn;
    }
    ASSERT_TRUE(bell.drain());

    EXPECT_TRUE(ringer.ring(bell));

    EXPECT_EQ(*bell.drain(), 1U);
}

}  // namespace
}  // namespace guestmem
