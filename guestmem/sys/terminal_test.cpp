// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/terminal.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <vector>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

class RawTerminalTest : public ::testing::Test {
protected:
    void SetUp() override {
        master_ = Fd{::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)};
        ASSERT_TRUE(master_.is_open());
        ASSERT_EQ(::grantpt(master_.view().number()), 0);
        ASSERT_EQ(::unlockpt(master_.view().number()), 0);
        slave_ = Fd{::open(::ptsname(master_.view().number()), O_RDWR | O_NOCTTY | O_CLOEXEC)};
        ASSERT_TRUE(slave_.is_open());
    }
    [[nodiscard]] bool is_canonical() const {
        termios now = {};
        EXPECT_EQ(::tcgetattr(slave_.view().number(), &now), 0);
        return (now.c_lflag & (ICANON | ECHO | ISIG)) == (ICANON | ECHO | ISIG);
    }

    Fd master_;
    Fd slave_;
};

TEST_F(RawTerminalTest, KeysComeOneByOneUntilItGoes) {
    ASSERT_TRUE(is_canonical());
    {
        const auto raw = RawTerminal::create(slave_);
        ASSERT_TRUE(raw);
        EXPECT_TRUE(raw->is_terminal());
        EXPECT_FALSE(is_canonical());
    }
    EXPECT_TRUE(is_canonical());
}

TEST_F(RawTerminalTest, RestoreGivesItBackAtOnce) {
    auto raw = RawTerminal::create(slave_);
    ASSERT_TRUE(raw);
    raw->restore();
    EXPECT_TRUE(is_canonical());
}

TEST_F(RawTerminalTest, ACallThatFailsLeavesTheTerminalAsItWas) {
    for (const std::uint64_t nth : {0U, 1U}) {
        const FaultInjector injector{nth};
        EXPECT_FALSE(RawTerminal::create(slave_)) << nth;
    }
    EXPECT_TRUE(is_canonical());
}

TEST(WriteWithoutWaiting, TakesWhatThereIsRoomForAndNoMore) {
    std::array<int, 2> ends{};
    ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    const Fd reader{ends[0]};
    const Fd writer{ends[1]};
    const std::vector<std::byte> much(1 << 20, std::byte{'x'});
    const auto taken = write_without_waiting(writer, much);
    ASSERT_TRUE(taken);
    EXPECT_GT(*taken, 4096U);
    EXPECT_LT(*taken, much.size());
    EXPECT_EQ(*write_without_waiting(writer, much), 0U);
}

TEST(WriteWithoutWaiting, ToNobodyIsAnError) {
    std::array<int, 2> ends{};
    ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    ::close(ends[0]);
    const Fd writer{ends[1]};
    const auto before = ::signal(SIGPIPE, SIG_IGN);
    const std::array<std::byte, 1> byte{};
    EXPECT_FALSE(write_without_waiting(writer, byte));
    static_cast<void>(::signal(SIGPIPE, before));
}

TEST(RawTerminal, WhatIsNoTerminalIsLeftAlone) {
    const auto file = open_file("/dev/null", OpenMode::read_write);
    ASSERT_TRUE(file);
    EXPECT_FALSE(is_terminal(*file));
    const auto raw = RawTerminal::create(*file);
    ASSERT_TRUE(raw);
    EXPECT_FALSE(raw->is_terminal());
}

}  // namespace
}  // namespace guestmem
