// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/undertaker.hpp"

#include <gtest/gtest.h>
#include <pthread.h>

#include <array>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/testing/lingering_socket.hpp"
#include "guestmem/sys/testing/resources.hpp"

namespace guestmem {
namespace {

class UndertakerTest : public ::testing::Test {
protected:
    void send(std::span<const FdView> fds = {}) const {
        const std::array<std::byte, 3> bytes{};
        ASSERT_TRUE(theirs_.send(bytes, fds));
    }
    bool bury_and_wait() {
        bool is_closed = false;
        undertaker_.bury(std::move(ours_), {}, [&] { is_closed = true; });
        was_at_once_ = is_closed;
        for (int i = 0; i < 300 && !is_closed; ++i)
            if (!loop_.run_once(10)) return false;
        return is_closed;
    }

    EventLoop loop_ = EventLoop::create().value();
    Undertaker undertaker_ = Undertaker::create(loop_).value();
    std::pair<UnixStream, UnixStream> pair_ = UnixStream::pair().value();
    UnixStream ours_ = std::move(pair_.first);
    UnixStream theirs_ = std::move(pair_.second);
    bool was_at_once_ = false;
};

TEST_F(UndertakerTest, ClosesAtOnceWhenNothingIsUnread) {
    EXPECT_TRUE(bury_and_wait());
    EXPECT_TRUE(was_at_once_);
    std::array<std::byte, 1> byte{};
    EXPECT_EQ(theirs_.receive(byte).value()->count_bytes, 0U);
}

TEST_F(UndertakerTest, ClosesAtOnceWhenOnlyBytesAreUnread) {
    send();
    send();
    EXPECT_TRUE(bury_and_wait());
    EXPECT_TRUE(was_at_once_);
}

TEST_F(UndertakerTest, ClosesWhatHasDescriptorsUnreadInAThread) {
    const EventFd bell = EventFd::create().value();
    const FdView fd = bell.view();
    send();
    send(std::span{&fd, 1});
    EXPECT_TRUE(bury_and_wait());
    EXPECT_FALSE(was_at_once_);
    EXPECT_EQ(undertaker_.count_waiting(), 0U);
}

TEST_F(UndertakerTest, NothingCanBeSentOnceItIsBuried) {
    ASSERT_TRUE(bury_and_wait());
    const std::array<std::byte, 3> bytes{};
    EXPECT_FALSE(theirs_.send(bytes));
}

TEST_F(UndertakerTest, APartyWithoutRoomTakesNobodyElsesRoom) {
    std::list<testing::LingeringSocket> slow;
    const std::array<std::byte, 1> byte{};
    const auto bury_slow_one = [&](std::string_view party) {
        auto [ours, theirs] = UnixStream::pair().value();
        slow.emplace_back().give_to(theirs, byte);
        EXPECT_TRUE(undertaker_.bury(std::move(ours), party));
    };
    while (undertaker_.has_room("greedy")) bury_slow_one("greedy");
    EXPECT_EQ(undertaker_.count_waiting("greedy"), max_burials_of_party);
    EXPECT_TRUE(undertaker_.has_room("modest"));
    for (int party = 0; undertaker_.count_waiting() < max_burials; ++party) {
        const std::string name = "party " + std::to_string(party);
        while (undertaker_.has_room(name)) bury_slow_one(name);
    }
    EXPECT_TRUE(undertaker_.has_room("modest")) << "of whom nothing waits";
    bury_slow_one("modest");
    EXPECT_FALSE(undertaker_.has_room("modest"));
    slow.clear();
    for (int i = 0; i < 3000 && undertaker_.count_waiting() != 0; ++i) ASSERT_TRUE(loop_.run_once(10));
    EXPECT_TRUE(undertaker_.has_room("greedy"));
}

TEST_F(UndertakerTest, WithoutAThreadItWaitsForOneAndClosesNothingItself) {
    pthread_attr_t usual;
    ASSERT_EQ(::pthread_getattr_default_np(&usual), 0);
    pthread_attr_t impossible;
    ASSERT_EQ(::pthread_attr_init(&impossible), 0);
    ASSERT_EQ(::pthread_attr_setstacksize(&impossible, std::size_t{1} << 47), 0);
    const EventFd bell = EventFd::create().value();
    const FdView fd = bell.view();
    send(std::span{&fd, 1});
    int count_closed = 0;
    const auto count = [&] { ++count_closed; };
    ASSERT_EQ(::pthread_setattr_default_np(&impossible), 0);
    EXPECT_TRUE(undertaker_.bury(std::move(ours_), "first", count));
    ASSERT_EQ(::pthread_setattr_default_np(&usual), 0);
    EXPECT_EQ(count_closed, 0);
    EXPECT_EQ(undertaker_.count_waiting("first"), 1U);

    auto [ours, theirs] = UnixStream::pair().value();
    const std::array<std::byte, 1> byte{};
    ASSERT_TRUE(theirs.send(byte, std::span{&fd, 1}));
    EXPECT_TRUE(undertaker_.bury(std::move(ours), "second", count));
    for (int i = 0; i < 3000 && count_closed != 2; ++i) ASSERT_TRUE(loop_.run_once(10));
    EXPECT_EQ(count_closed, 2) << "the next burial is that of the first, too";
    ::pthread_attr_destroy(&usual);
    ::pthread_attr_destroy(&impossible);
}

TEST_F(UndertakerTest, LooksWithoutInstallingDescriptors) {
    const EventFd bell = EventFd::create().value();
    const FdView fd = bell.view();
    send(std::span{&fd, 1});
    const auto before = testing::Resources::look();
    std::array<std::byte, 16> buffer{};
    for (int twice = 0; twice < 2; ++twice) {
        const auto seen = ours_.peek(buffer).value();
        ASSERT_TRUE(seen);
        EXPECT_EQ(seen->count_bytes, 3U);
        EXPECT_TRUE(seen->has_fds);
    }
    EXPECT_EQ(testing::Resources::look(), before);
    EXPECT_EQ(ours_.receive(buffer).value()->fds.size(), 1U) << "it is still there";
}

}  // namespace
}  // namespace guestmem
