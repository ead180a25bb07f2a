// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/poll.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <thread>

#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/unix_socket.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using testing::for_each_fault;
using ::testing::IsEmpty;

TEST(PollReadable, SaysWhichOfSeveralAreReadable) {
    const EventFd quiet = EventFd::create().value();
    const EventFd rung = EventFd::create().value();
    ASSERT_TRUE(rung.ring());
    const std::array fds{rung.view(), quiet.view(), FdView{}, rung.view()};

    EXPECT_THAT(*poll_readable(fds, 0), ElementsAre(0, 3));
}

TEST(PollReadable, IsFalseWhenTheTimePasses) {
    const EventFd quiet = EventFd::create().value();
    const auto begin = std::chrono::steady_clock::now();

    EXPECT_FALSE(*poll_readable(quiet.view(), 30));

    EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds{29});
}

TEST(PollReadable, WaitsForWhatComesLater) {
    const EventFd bell = EventFd::create().value();
    std::thread ringer{[&] {
        std::this_thread::sleep_for(std::chrono::milliseconds{10});
        EXPECT_TRUE(bell.ring());
    }};

    EXPECT_TRUE(*poll_readable(bell.view(), 10'000));

    ringer.join();
}

TEST(PollReadable, AHangUpCountsAsReadable) {
    auto ends = UnixStream::pair().value();
    ends.second = UnixStream{};
    EXPECT_TRUE(*poll_readable(ends.first.view(), 0));
}

TEST(PollReadable, OfNothingOrOfAClosedOneWaitsOutTheTime) {
    EXPECT_THAT(*poll_readable(std::span<const FdView>{}, 0), IsEmpty());
    EXPECT_FALSE(*poll_readable(FdView{}, 0));
}

TEST(PollReadable, HandsTheKernelsErrorOn) {
    const EventFd bell = EventFd::create().value();
    ASSERT_TRUE(bell.ring());
    EXPECT_EQ(for_each_fault([&] { return poll_readable(bell.view(), 0); }), 1U);
}

}  // namespace
}  // namespace guestmem
