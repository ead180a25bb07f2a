// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/wait_set.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <chrono>

#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/unix_socket.hpp"

namespace guestmem {
namespace {

bool is_readable(const WaitSet& set) { return poll_readable(set.view(), 0).value(); }

TEST(WaitSet, IsReadableWhileOneOfItsMembersIs) {
    const WaitSet set = WaitSet::create().value();
    const EventFd one = EventFd::create().value();
    const EventFd two = EventFd::create().value();
    ASSERT_TRUE(set.add(one.view()));
    ASSERT_TRUE(set.add(two.view()));
    EXPECT_FALSE(is_readable(set));
    ASSERT_TRUE(one.ring());
    ASSERT_TRUE(two.ring());
    EXPECT_TRUE(is_readable(set));
    ASSERT_TRUE(one.drain());
    EXPECT_TRUE(is_readable(set)) << "the other one still is";
    ASSERT_TRUE(two.drain());
    EXPECT_FALSE(is_readable(set));
}

TEST(WaitSet, SeesThatAnOtherEndHungUp) {
    auto [ours, theirs] = UnixStream::pair().value();
    const WaitSet set = WaitSet::create().value();
    ASSERT_TRUE(set.add(ours.view()));
    EXPECT_FALSE(is_readable(set));
    theirs = UnixStream{};
    EXPECT_TRUE(is_readable(set));
}

TEST(WaitSet, WhoWasRemovedIsNotSeenThoughOthersHoldIt) {
    const WaitSet set = WaitSet::create().value();
    const Fd held = [&] {
        const EventFd bell = EventFd::create().value();
        Fd copy{::fcntl(bell.view().number(), F_DUPFD_CLOEXEC, 0)};
        EXPECT_TRUE(set.add(bell.view()));
        EXPECT_TRUE(bell.ring());
        EXPECT_TRUE(is_readable(set));
        set.remove(bell.view());
        return copy;
    }();
    EXPECT_FALSE(is_readable(set));
    set.remove(held.view());
    set.remove(FdView{});
}

TEST(WaitSet, ASetInASetIsSeenUntilItIsGone) {
    const WaitSet outer = WaitSet::create().value();
    const EventFd bell = EventFd::create().value();
    ASSERT_TRUE(bell.ring());
    {
        const WaitSet inner = WaitSet::create().value();
        ASSERT_TRUE(inner.add(bell.view()));
        ASSERT_TRUE(outer.add(inner.view()));
        EXPECT_TRUE(is_readable(outer));
    }
    EXPECT_FALSE(is_readable(outer));
}

TEST(WaitSet, AMemberTwiceOrClosedIsAnError) {
    const WaitSet set = WaitSet::create().value();
    const EventFd bell = EventFd::create().value();
    ASSERT_TRUE(set.add(bell.view()));
    EXPECT_EQ(set.add(bell.view()).error().code(), Errc::already_exists);
    EXPECT_FALSE(set.add(FdView{}));
}

TEST(PollList, TellsWhichOnesAreReady) {
    const EventFd one = EventFd::create().value();
    const EventFd two = EventFd::create().value();
    auto [ours, theirs] = UnixStream::pair().value();
    PollList list;
    list.add(one.view());
    list.add(FdView{});
    list.add(two.view());
    list.add(ours.view());
    EXPECT_EQ(*list.wait(0), 0U);
    ASSERT_TRUE(two.ring());
    theirs = UnixStream{};
    EXPECT_EQ(*list.wait(-1), 2U);
    EXPECT_FALSE(list.is_ready(0));
    EXPECT_FALSE(list.is_ready(1)) << "a closed one";
    EXPECT_TRUE(list.is_ready(2));
    EXPECT_TRUE(list.is_ready(3)) << "hung up";
    EXPECT_FALSE(list.is_ready(4)) << "beyond the last";
    list.clear();
    list.add(one.view());
    EXPECT_EQ(*list.wait(1), 0U);
    EXPECT_FALSE(list.is_ready(2));
}

TEST(PollList, AWaitIsOneSystemCallAndItsFailureAnError) {
    const EventFd bell = EventFd::create().value();
    ASSERT_TRUE(bell.ring());
    PollList list;
    list.add(bell.view());
    EXPECT_EQ(testing::for_each_fault([&] { return list.wait(1000); }), 1U);
}

TEST(TickMs, IsLateByATickAtMostAndNeverEarly) {
    const auto exact_ms = [] {
        return std::chrono::duration_cast<std::chrono::milliseconds>(
                   std::chrono::steady_clock::now().time_since_epoch())
            .count();
    };
    for (int i = 0; i < 1000; ++i) {
        const auto before = exact_ms();
        const auto tick = tick_ms();
        EXPECT_LE(tick, exact_ms());
        EXPECT_GE(tick, before - 100) << "a machine without ticks is as late as that";
    }
}

TEST(WaitSet, WhateverFailsIsAnErrorAndLeavesNothing) {
    const EventFd bell = EventFd::create().value();
    const auto count = testing::for_each_fault([&]() -> Result<WaitSet> {
        WaitSet set = GM_TRY(WaitSet::create());
        GM_TRY(set.add(bell.view()));
        return set;
    });
    EXPECT_EQ(count, 2U);
}

}  // namespace
}  // namespace guestmem
