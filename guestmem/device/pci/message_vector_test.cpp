// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/message_vector.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "guestmem/device/testing/fake_msi.hpp"
#include "guestmem/sys/eventfd.hpp"

namespace guestmem::pci {
namespace {

using guestmem::testing::FakeMsiConnector;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr MsiMessage message{.address = 0xfee0'0000, .data = 0x41};
constexpr MsiMessage another{.address = 0xfee0'1000, .data = 0x42};

class MessageVectorTest : public ::testing::Test {
protected:
    FakeMsiConnector machine_;
    EventFd bell_ = EventFd::create().value();
    EventFd other_bell_ = EventFd::create().value();
    MessageVector vector_;
};

TEST_F(MessageVectorTest, KicksThatComeWhileItIsMaskedArriveAsOne) {
    ASSERT_TRUE(vector_.give(machine_, bell_.view()));
    ASSERT_TRUE(bell_.kick());
    ASSERT_TRUE(bell_.kick());
    EXPECT_THAT(machine_.deliver(), IsEmpty());
    EXPECT_TRUE(vector_.is_pending());
    ASSERT_TRUE(vector_.want(message));
    EXPECT_FALSE(vector_.is_pending());
    EXPECT_THAT(machine_.deliver(), ElementsAre(message));
    EXPECT_THAT(machine_.deliver(), IsEmpty());
}

TEST_F(MessageVectorTest, OnlyAChangeReachesTheMachine) {
    ASSERT_TRUE(vector_.give(machine_, bell_.view()));
    ASSERT_TRUE(vector_.want(message));
    ASSERT_TRUE(vector_.want(message));
    EXPECT_EQ(machine_.count_unmask_calls(), 1U);
    ASSERT_TRUE(vector_.want(another));
    EXPECT_THAT(machine_.connected(), ElementsAre(another));
}

TEST_F(MessageVectorTest, AnEventfdThatComesLaterIsWhatTheGuestAskedForBefore) {
    ASSERT_TRUE(vector_.want(message));
    EXPECT_FALSE(vector_.is_pending());
    ASSERT_TRUE(vector_.give(machine_, bell_.view()));
    EXPECT_EQ(machine_.message_of(bell_.view()), message);
    vector_.take_back();
    EXPECT_THAT(machine_.connected(), IsEmpty());
    EXPECT_FALSE(vector_.is_given());
    ASSERT_TRUE(vector_.give(machine_, other_bell_.view()));
    EXPECT_EQ(machine_.message_of(other_bell_.view()), message);
}

TEST_F(MessageVectorTest, AnEventfdThatIsRefusedLeavesTheOldOne) {
    ASSERT_TRUE(vector_.give(machine_, bell_.view()));
    ASSERT_TRUE(vector_.want(message));
    machine_.refuse(1);
    EXPECT_FALSE(vector_.give(machine_, other_bell_.view()));
    EXPECT_THAT(machine_.connected(), ElementsAre(message));
    EXPECT_EQ(machine_.message_of(bell_.view()), message);
}

TEST_F(MessageVectorTest, ARefusedMessageIsMaskedAndTriedAgain) {
    ASSERT_TRUE(vector_.give(machine_, bell_.view()));
    machine_.refuse(1);
    EXPECT_FALSE(vector_.want(message));
    EXPECT_THAT(machine_.connected(), ElementsAre(std::nullopt));
    EXPECT_TRUE(vector_.want(message));
    EXPECT_THAT(machine_.connected(), ElementsAre(message));
}

TEST_F(MessageVectorTest, AMessageThatCannotBeReplacedDoesNotStay) {
    ASSERT_TRUE(vector_.give(machine_, bell_.view()));
    ASSERT_TRUE(vector_.want(message));
    machine_.refuse(1);
    EXPECT_FALSE(vector_.want(another));
    EXPECT_THAT(machine_.connected(), ElementsAre(std::nullopt));
}

TEST_F(MessageVectorTest, AMaskThatFailedIsTriedAgain) {
    ASSERT_TRUE(vector_.give(machine_, bell_.view()));
    ASSERT_TRUE(vector_.want(message));
    machine_.refuse(1);
    EXPECT_FALSE(vector_.want(std::nullopt));
    EXPECT_TRUE(vector_.want(std::nullopt));
    EXPECT_THAT(machine_.connected(), ElementsAre(std::nullopt));
}

}  // namespace
}  // namespace guestmem::pci
