// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/msix.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <thread>

#include "guestmem/device/pci/testing/pci_machine.hpp"

namespace guestmem::pci {
namespace {

using guestmem::testing::FakeMsiConnector;
using guestmem::testing::PciMachine;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr unsigned device = 2;
constexpr std::uint64_t control = 0x42;
constexpr std::uint64_t table = 0xf010'0000;
constexpr MsiMessage message{.address = 0x1'fee0'1000, .data = 0x4041};

class MsixTest : public ::testing::Test {
protected:
    void SetUp() override {
        for (std::size_t i = 0; i < PciMachine::count_msix; ++i)
            ASSERT_TRUE(machine_.msix->give(i, machine_.msix_bells[i].view()));
        machine_.write<std::uint32_t>(device, 0x14, table);
        machine_.write<std::uint16_t>(device, command_register, command_memory);
    }
    void fill_entry(std::uint64_t vector) const {
        machine_.store<std::uint32_t>(table + vector * 16, 0xfee0'1000);
        machine_.store<std::uint32_t>(table + vector * 16 + 4, 1);
        machine_.store<std::uint32_t>(table + vector * 16 + 8, 0x4041);
    }
    void mask(std::uint64_t vector, bool is_masked) const {
        machine_.store<std::uint32_t>(table + vector * 16 + 12, is_masked ? 1 : 0);
    }
    [[nodiscard]] std::optional<MsiMessage> live(std::size_t vector) const {
        return machine_.connector->message_of(machine_.msix_bells[vector].view());
    }
    PciMachine machine_;
};

TEST_F(MsixTest, SaysHowManyVectorsThereAreAndWhere) {
    EXPECT_EQ(machine_.find_capability(device, Msix::capability_id), 0x40);
    EXPECT_EQ(machine_.read<std::uint16_t>(device, control), PciMachine::count_msix - 1);
    EXPECT_EQ(machine_.read<std::uint32_t>(device, 0x44), 0x0000'0001U);
    EXPECT_EQ(machine_.read<std::uint32_t>(device, 0x48), 0x0000'0801U);
    machine_.write<std::uint32_t>(device, 0x44, 0);
    EXPECT_EQ(machine_.read<std::uint32_t>(device, 0x44), 0x0000'0001U);
}

// Linux enables MSI-X with the function masked, masks all entries, writes those it wants, and opens the function.
TEST_F(MsixTest, EnabledTheWayLinuxDoesItNoMessageIsLostAndNoneIsEarly) {
    ASSERT_TRUE(machine_.msix_bells[1].kick());
    machine_.write<std::uint16_t>(device, control, 0xc000);
    EXPECT_TRUE(machine_.msix->is_enabled());
    for (std::uint64_t i = 0; i < PciMachine::count_msix; ++i) {
        EXPECT_EQ(machine_.load<std::uint32_t>(table + i * 16 + 12), 1U) << "entries are born masked";
        mask(i, true);
    }
    fill_entry(1);
    mask(1, false);
    EXPECT_FALSE(live(1));
    machine_.write<std::uint16_t>(device, control, 0x8000);
    EXPECT_EQ(live(1), message);
    EXPECT_FALSE(live(0));
    EXPECT_THAT(machine_.connector->deliver(), ElementsAre(message)) << "the kick from before";
    ASSERT_TRUE(machine_.msix_bells[1].kick());
    EXPECT_THAT(machine_.connector->deliver(), ElementsAre(message));
    EXPECT_EQ(machine_.connector->count_unmask_calls(), 1U);
    machine_.write<std::uint16_t>(device, control, 0);
    EXPECT_FALSE(live(1));
}

TEST_F(MsixTest, MasksOfAnEntryAndOfTheFunctionHoldKicksBack) {
    machine_.write<std::uint16_t>(device, control, 0x8000);
    fill_entry(0);
    mask(0, false);
    mask(0, true);
    ASSERT_TRUE(machine_.msix_bells[0].kick());
    ASSERT_TRUE(machine_.msix_bells[4].kick());
    EXPECT_THAT(machine_.connector->deliver(), IsEmpty());
    EXPECT_EQ(machine_.load<std::uint64_t>(table + 0x800), 0x11U);
    EXPECT_EQ(machine_.load<std::uint32_t>(table + 0x800), 0x11U);
    machine_.store<std::uint64_t>(table + 0x800, 0);
    EXPECT_EQ(machine_.load<std::uint64_t>(table + 0x800), 0x11U);
    machine_.write<std::uint16_t>(device, control, 0xc000);
    mask(0, false);
    EXPECT_THAT(machine_.connector->deliver(), IsEmpty());
    machine_.write<std::uint16_t>(device, control, 0x8000);
    EXPECT_THAT(machine_.connector->deliver(), ElementsAre(message));
    EXPECT_EQ(machine_.load<std::uint64_t>(table + 0x800), 0x10U);
}

TEST_F(MsixTest, PeersComeAndGoWhileTheGuestRuns) {
    machine_.write<std::uint16_t>(device, control, 0x8000);
    machine_.msix->take_back(3);
    fill_entry(3);
    mask(3, false);
    EXPECT_EQ(machine_.load<std::uint64_t>(table + 0x800), 0U);
    const EventFd newcomer = EventFd::create().value();
    ASSERT_TRUE(machine_.msix->give(3, newcomer.view()));
    ASSERT_TRUE(newcomer.kick());
    EXPECT_THAT(machine_.connector->deliver(), ElementsAre(message));
    const EventFd successor = EventFd::create().value();
    ASSERT_TRUE(machine_.msix->give(3, successor.view()));
    EXPECT_EQ(machine_.connector->message_of(successor.view()), message);
    EXPECT_FALSE(machine_.connector->message_of(newcomer.view()));
    machine_.msix->take_back(3);
    EXPECT_FALSE(machine_.connector->message_of(successor.view()));
}

TEST_F(MsixTest, WritesThatTheSpecificationDoesNotKnowHaveNoEffect) {
    machine_.write<std::uint16_t>(device, control, 0x8000);
    machine_.store<std::uint8_t>(table + 12, 0);
    machine_.store<std::uint16_t>(table + 12, 0);
    machine_.store<std::uint32_t>(table + 13, 0);
    machine_.store<std::uint64_t>(table + 12, 0);
    machine_.store<std::uint64_t>(table + 4, ~std::uint64_t{0});
    machine_.store<std::uint32_t>(table + PciMachine::count_msix * 16, ~std::uint32_t{0});
    EXPECT_EQ(machine_.load<std::uint64_t>(table), 0U);
    EXPECT_EQ(machine_.load<std::uint64_t>(table + 8), std::uint64_t{1} << 32);
    EXPECT_EQ(machine_.load<std::uint64_t>(table + PciMachine::count_msix * 16), 0U);
    machine_.store<std::uint32_t>(table + 12, 0xffff'fffe);
    EXPECT_EQ(machine_.load<std::uint32_t>(table + 12), 0U) << "reserved bits stay zero";
    machine_.store<std::uint64_t>(table, 0x1'fee0'1003);
    EXPECT_EQ(live(0)->address, 0x1'fee0'1000U);
}

TEST_F(MsixTest, EveryOffsetAndWidthIsAnswered) {
    for (std::uint64_t offset = 0; offset < 4096; ++offset) {
        for (const std::size_t size : {1U, 2U, 4U, 8U}) {
            std::array<std::byte, 8> data{};
            const std::span bytes = std::span{data}.first(size);
            machine_.msix->read(offset, bytes);
            machine_.msix->write(offset, bytes);
        }
    }
    for (std::uint64_t i = 0; i < PciMachine::count_msix; ++i)
        EXPECT_EQ(machine_.load<std::uint32_t>(table + i * 16 + 12), 1U)
            << "each was written with what it was";
}

TEST_F(MsixTest, ThreadsOfGuestAndPeersLeaveItAsTheTableSays) {
    machine_.write<std::uint16_t>(device, control, 0x8000);
    fill_entry(0);
    std::thread peers{[this] {
        for (int i = 0; i < 500; ++i) {
            machine_.msix->take_back(0);
            EXPECT_TRUE(machine_.msix->give(0, machine_.msix_bells[0].view()));
        }
    }};
    std::thread other_processor{[this] {
        for (std::uint16_t i = 0; i < 500; ++i)
            machine_.write<std::uint16_t>(device, control, i % 2 == 0 ? 0xc000 : 0x8000);
    }};
    for (int i = 0; i < 500; ++i) {
        mask(0, true);
        (void)machine_.load<std::uint64_t>(table + 0x800);
        mask(0, false);
    }
    peers.join();
    other_processor.join();
    EXPECT_EQ(live(0), message);
}

TEST(Msix, ItsBarHasRoomForTableAndPendingBits) {
    const auto connector = std::make_shared<FakeMsiConnector>();
    const auto made = [&](std::size_t count) {
        return Msix::create({.count_vectors = count, .connector = connector});
    };
    EXPECT_EQ(made(1).value()->bar_size_bytes(), 4096U);
    EXPECT_EQ(made(128).value()->pending_offset(), 2048U);
    EXPECT_EQ(made(128).value()->bar_size_bytes(), 4096U);
    EXPECT_EQ(made(129).value()->pending_offset(), 2064U);
    EXPECT_EQ(made(2048).value()->bar_size_bytes(), 65'536U);
    EXPECT_EQ(made(2048).value()->image().bytes[3], std::byte{0x07});
    EXPECT_FALSE(made(0));
    EXPECT_FALSE(made(2049));
    EXPECT_FALSE(Msix::create({.count_vectors = 1, .bar_index = 6, .connector = connector}));
    EXPECT_FALSE(Msix::create({.count_vectors = 1}));
    const EventFd bell = EventFd::create().value();
    EXPECT_FALSE(made(2).value()->give(2, bell.view()));
}

}  // namespace
}  // namespace guestmem::pci
