// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/msi.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "guestmem/device/pci/testing/pci_machine.hpp"

namespace guestmem::pci {
namespace {

using guestmem::testing::FakeMsiConnector;
using guestmem::testing::PciMachine;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

constexpr unsigned device = 1;
constexpr std::uint64_t at = 0x40;

class MsiTest : public ::testing::Test {
protected:
    void program(std::uint16_t control) const {
        machine_.write<std::uint32_t>(device, at + 4, 0xfee0'1003);
        machine_.write<std::uint32_t>(device, at + 8, 0x1);
        machine_.write<std::uint16_t>(device, at + 12, 0x4567);
        machine_.write<std::uint16_t>(device, at + 2, control);
    }
    void give_all() {
        for (std::size_t i = 0; i < PciMachine::count_msi; ++i)
            ASSERT_TRUE(machine_.msi->give(i, machine_.msi_bells[i].view()));
    }
    PciMachine machine_;
};

TEST_F(MsiTest, OffersItsMessagesWith64BitAddressesAndMasks) {
    EXPECT_EQ(machine_.find_capability(device, Msi::capability_id), at);
    EXPECT_EQ(machine_.read<std::uint16_t>(device, at + 2), 0x0184);
    machine_.write<std::uint16_t>(device, at + 2, 0xfffe);
    EXPECT_EQ(machine_.read<std::uint16_t>(device, at + 2), 0x01f4);
}

TEST_F(MsiTest, OneMessageIsWhatTheGuestWrote) {
    give_all();
    program(0x0001);
    EXPECT_TRUE(machine_.msi->is_enabled());
    ASSERT_TRUE(machine_.msi_bells[0].kick());
    EXPECT_THAT(machine_.connector->deliver(),
                UnorderedElementsAre(MsiMessage{.address = 0x1'fee0'1000, .data = 0x4567}));
    program(0x0000);
    EXPECT_FALSE(machine_.msi->is_enabled());
    EXPECT_FALSE(machine_.connector->message_of(machine_.msi_bells[0].view()));
}

TEST_F(MsiTest, SeveralMessagesDifferInTheLowBitsOfTheirData) {
    give_all();
    program(0x0021);  // four of four
    for (std::uint32_t i = 0; i < 4; ++i)
        EXPECT_EQ(machine_.connector->message_of(machine_.msi_bells[i].view())->data, 0x4564 + i);
    program(0x0011);  // two of four: vectors 2 and 3 share them
    for (std::uint32_t i = 0; i < 4; ++i)
        EXPECT_EQ(machine_.connector->message_of(machine_.msi_bells[i].view())->data, 0x4566 + i % 2);
    program(0x0071);  // more than there are
    EXPECT_EQ(machine_.connector->message_of(machine_.msi_bells[3].view())->data, 0x4567U);
}

TEST_F(MsiTest, AMaskedMessageIsPendingUntilItIsUnmasked) {
    give_all();
    program(0x0021);
    machine_.write<std::uint32_t>(device, at + 16, 0xffff'fff4);
    EXPECT_EQ(machine_.read<std::uint32_t>(device, at + 16), 0x4U) << "there are four mask bits";
    ASSERT_TRUE(machine_.msi_bells[2].kick());
    EXPECT_EQ(machine_.read<std::uint32_t>(device, at + 20), 0x4U);
    EXPECT_EQ(machine_.read<std::uint8_t>(device, at + 20), 0x4U);
    machine_.write<std::uint32_t>(device, at + 20, 0);
    EXPECT_EQ(machine_.read<std::uint32_t>(device, at + 20), 0x4U) << "pending bits are read-only";
    machine_.write<std::uint32_t>(device, at + 16, 0);
    EXPECT_EQ(machine_.read<std::uint32_t>(device, at + 20), 0U);
    EXPECT_THAT(machine_.connector->deliver(), SizeIs(1));
}

TEST_F(MsiTest, FurtherEventfdsAreTheSameMessage) {
    const EventFd other = EventFd::create().value();
    EXPECT_FALSE(machine_.msi->add(0, other.view())) << "without a first one";
    give_all();
    ASSERT_TRUE(machine_.msi->add(0, other.view()));
    EXPECT_FALSE(machine_.msi->add(PciMachine::count_msi, other.view()));
    ASSERT_TRUE(other.kick());
    EXPECT_EQ(machine_.read<std::uint32_t>(device, at + 20), 1U) << "it waits";
    program(0x0001);
    EXPECT_THAT(machine_.connector->deliver(),
                UnorderedElementsAre(MsiMessage{.address = 0x1'fee0'1000, .data = 0x4567}));
    machine_.msi->remove(0, other.view());
    EXPECT_FALSE(machine_.connector->message_of(other.view()));
    EXPECT_TRUE(machine_.connector->message_of(machine_.msi_bells[0].view()));
    machine_.msi->remove(0, other.view());
    machine_.msi->remove(PciMachine::count_msi, other.view());
}

TEST_F(MsiTest, EnabledItSilencesThePin) {
    machine_.shmem_pin->set(true);
    EXPECT_TRUE(machine_.lines[1]->is_up());
    program(0x0001);
    EXPECT_FALSE(machine_.lines[1]->is_up());
    program(0x0000);
    EXPECT_TRUE(machine_.lines[1]->is_up());
}

TEST_F(MsiTest, VectorsHaveALimit) {
    EXPECT_TRUE(machine_.msi->give(3, machine_.msi_bells[3].view()));
    const auto refused = machine_.msi->give(4, machine_.msi_bells[0].view());
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().message(), HasSubstr("vector 4: the device has 4"));
    machine_.msi->take_back(4);
    const auto connector = std::make_shared<FakeMsiConnector>();
    EXPECT_TRUE(Msi::create({.count_vectors = 32, .connector = connector}));
    for (const std::size_t count : {0U, 3U, 33U, 64U})
        EXPECT_FALSE(Msi::create({.count_vectors = count, .connector = connector})) << count;
    EXPECT_FALSE(Msi::create({}));
}

TEST(Msi, ARefusalOfTheMachineIsReportedOnce) {
    const auto connector = std::make_shared<FakeMsiConnector>();
    const EventFd bell = EventFd::create().value();
    int count_reports = 0;
    const auto msi =
        Msi::create({.connector = connector, .report = [&](const Error&) { ++count_reports; }}).value();
    ASSERT_TRUE(msi->give(0, bell.view()));
    std::vector<std::byte> bytes = msi->image().bytes;
    bytes[2] |= std::byte{1};
    connector->refuse(3);
    for (int i = 0; i < 5; ++i) msi->programmed(bytes);
    EXPECT_EQ(count_reports, 1);
    EXPECT_TRUE(connector->message_of(bell.view())) << "it is tried again";
}

}  // namespace
}  // namespace guestmem::pci
