// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/host_bridge.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "guestmem/device/pci/testing/pci_machine.hpp"
#include "guestmem/device/pci/testing/pci_session.hpp"

namespace guestmem::pci {
namespace {

using guestmem::testing::Choices;
using guestmem::testing::PciMachine;
using guestmem::testing::PciSession;
using guestmem::testing::PlainRegisters;
using ::testing::HasSubstr;

std::uint32_t config_address(unsigned bus, unsigned device, unsigned function, unsigned offset) {
    return 0x8000'0000U | bus << 16 | device << 11 | function << 8 | offset;
}

std::shared_ptr<Function> card(std::string name, std::vector<Bar> bars = {}) {
    return Function::create(
               {.name = std::move(name), .identity = {.vendor = 1, .device = 2}, .bars = std::move(bars)})
        .value();
}

// What Linux does before it believes in mechanism #1.
TEST(HostBridge, MechanismOneIsFound) {
    const PciMachine machine;
    machine.out<std::uint8_t>(0xcfb, 0x01);
    machine.out<std::uint32_t>(0xcf8, 0x8000'0000);
    EXPECT_EQ(machine.in<std::uint32_t>(0xcf8), 0x8000'0000U);
    machine.out<std::uint32_t>(0xcf8, config_address(0, 0, 0, class_register & ~3U));
    EXPECT_EQ(machine.in<std::uint16_t>(0xcfe), 0x0600);
    machine.out<std::uint32_t>(0xcf8, 0xffff'ffff);
    EXPECT_EQ(machine.in<std::uint32_t>(0xcf8), 0x80ff'fffcU) << "reserved bits read as zero";
}

TEST(HostBridge, BytesAndWordsOfARegisterAreReadAndWrittenInPlace) {
    const PciMachine machine;
    machine.out(0xcf8, config_address(0, 1, 0, 0));
    EXPECT_EQ(machine.in<std::uint32_t>(0xcfc), 0x0001'1c05U);
    EXPECT_EQ(machine.in<std::uint16_t>(0xcfe), 0x0001);
    EXPECT_EQ(machine.in<std::uint8_t>(0xcfd), 0x1c);
    EXPECT_EQ(machine.in<std::uint16_t>(0xcfd), 0x011c) << "unaligned, inside the register";
    machine.out(0xcf8, config_address(0, 1, 0, interrupt_line_register));
    machine.out<std::uint8_t>(0xcfc, 11);
    EXPECT_EQ(machine.read<std::uint8_t>(1, interrupt_line_register), 11);
    EXPECT_EQ(machine.in<std::uint16_t>(0xcff), 0xffff) << "half of it is behind the last port";
    EXPECT_EQ(machine.in<std::uint32_t>(0xcfa), 0xffff'ffffU);
    EXPECT_EQ(machine.in<std::uint64_t>(0xcf8), ~std::uint64_t{0});
    EXPECT_EQ(machine.in<std::uint16_t>(0xcf8), 0xffff);
    machine.out<std::uint16_t>(0xcf8, 0);
    EXPECT_EQ(machine.in<std::uint32_t>(0xcf8), config_address(0, 1, 0, interrupt_line_register));
}

TEST(HostBridge, WhatIsAbsentReadsAsOnesAndTakesNoWrite) {
    const PciMachine machine;
    for (const std::uint32_t address :
         {config_address(1, 1, 0, 0), config_address(0, 1, 1, 0), config_address(0, 9, 0, 0),
          config_address(0, 1, 0, 0) & 0x7fff'ffff}) {
        machine.out(0xcf8, address);
        EXPECT_EQ(machine.in<std::uint32_t>(0xcfc), 0xffff'ffffU) << address;
        machine.out<std::uint32_t>(0xcfc, 0);
    }
    EXPECT_EQ(machine.read<std::uint32_t>(9, 0), 0xffff'ffffU);
    EXPECT_EQ(machine.read<std::uint32_t>(1, 0x1000), 0xffff'ffffU) << "function 1";
    EXPECT_EQ(machine.read<std::uint32_t>(1, 0x100), 0xffff'ffffU) << "there is no extended space";
    EXPECT_EQ(machine.read<std::uint32_t>(1, 0xffe), 0xffff'ffffU);
    EXPECT_EQ(machine.read<std::uint32_t>(1, 0xfe), 0xffff'0000U)
        << "the last two bytes, and what is behind them";
}

class Reset final : public IoDevice {
public:
    void read(std::uint64_t, std::span<std::byte> data) override { data[0] = std::byte{6}; }
    void write(std::uint64_t, std::span<const std::byte> data) override { written = data[0]; }
    std::byte written{0};
};

TEST(HostBridge, TheResetPortBetweenItsOwnIsSomebodyElses) {
    Bus memory{"memory", ~std::uint64_t{0}};
    Bus ports{"port", 0xffff};
    const auto reset = std::make_shared<Reset>();
    const auto bridge =
        HostBridge::create({.memory = &memory, .ports = &ports, .reset_control = reset}).value();
    std::array<std::byte, 1> byte{std::byte{0x0e}};
    ports.write(0xcf9, byte);
    EXPECT_EQ(reset->written, std::byte{0x0e});
    ports.read(0xcf9, byte);
    EXPECT_EQ(byte[0], std::byte{6});
    std::array<std::byte, 2> word{std::byte{1}, std::byte{1}};
    ports.write(0xcf9, word);
    EXPECT_EQ(reset->written, std::byte{0x0e});
}

TEST(HostBridge, HasRoomForThirtyOneDevices) {
    Bus memory{"memory", ~std::uint64_t{0}};
    const auto bridge = HostBridge::create({.memory = &memory, .ecam_base = 0xe000'0000}).value();
    EXPECT_EQ(bridge->add(card("first"), 3).value(), 3U);
    for (unsigned i = 0; i < 30; ++i) EXPECT_EQ(bridge->add(card("more")).value(), i < 2 ? i + 1 : i + 2);
    const auto full = bridge->add(card("late"));
    ASSERT_FALSE(full);
    EXPECT_THAT(full.error().message(), HasSubstr("late: PCI bus 0 is full"));
    const auto taken = bridge->add(card("late"), 3);
    ASSERT_FALSE(taken);
    EXPECT_THAT(taken.error().message(), HasSubstr("PCI device 00:03.0 is first"));
    EXPECT_FALSE(bridge->add(card("late"), 32));
    EXPECT_FALSE(bridge->add(card("late"), 0));
    EXPECT_TRUE(bridge->remove(31));
    EXPECT_FALSE(bridge->remove(31));
    EXPECT_FALSE(bridge->remove(0)) << "the bridge itself stays";
    EXPECT_FALSE(bridge->remove(99));
    const auto again = card("again");
    EXPECT_TRUE(bridge->add(again));
    EXPECT_EQ(bridge->functions().size(), 32U);
}

TEST(HostBridge, OneFunctionIsInOnePlace) {
    Bus memory{"memory", ~std::uint64_t{0}};
    const auto bridge = HostBridge::create({.memory = &memory}).value();
    const auto one = card("one");
    EXPECT_TRUE(bridge->add(one));
    EXPECT_FALSE(bridge->add(one));
}

TEST(HostBridge, WhatCannotBeIsRefusedAndLeavesTheBusesAlone) {
    Bus memory{"memory", ~std::uint64_t{0}};
    Bus ports{"port", 0xffff};
    EXPECT_FALSE(HostBridge::create({}));
    EXPECT_FALSE(HostBridge::create({.memory = &memory, .ecam_base = 0xe008'0000}));
    HostBridge::Options one_line{.memory = &memory};
    one_line.lines[0] = std::make_shared<guestmem::testing::RecordingLine>();
    EXPECT_FALSE(HostBridge::create(std::move(one_line)));
    ASSERT_TRUE(memory.add({.name = "else", .first = 0xe000'0000, .count = 1}));
    EXPECT_FALSE(HostBridge::create({.memory = &memory, .ports = &ports, .ecam_base = 0xe000'0000}));
    EXPECT_TRUE(ports.windows().empty());
    EXPECT_EQ(memory.windows().size(), 1U);
}

TEST(HostBridge, LeavesNothingBehind) {
    PciMachine machine;
    machine.bridge->assign(PciMachine::windows).value();
    for (unsigned device = 1; device < 5; ++device) machine.write<std::uint16_t>(device, command_register, 3);
    machine.shmem_pin->set(true);
    EXPECT_TRUE(machine.shared.address);
    EXPECT_EQ(machine.memory.windows().size(), 2 + 7U);
    machine.bridge.reset();
    EXPECT_EQ(machine.memory.windows().size(), 1U);
    EXPECT_EQ(machine.ports.windows().size(), 1U);
    EXPECT_FALSE(machine.shared.address);
    EXPECT_FALSE(machine.lines[1]->is_up());
}

TEST(HostBridge, AssignedBarsAreVisibleOnceAGuestDecodesThem) {
    PciMachine machine;
    machine.bridge->assign(PciMachine::windows).value();
    EXPECT_EQ(machine.memory.windows().size(), 2U) << "decoding is the guest's";
    EXPECT_EQ(machine.read<std::uint16_t>(2, command_register), 0);
    const auto before = machine.function(2)->programmed_address(2);
    EXPECT_GE(before, PciMachine::windows.memory64->first);
    for (unsigned device = 1; device < 5; ++device) machine.write<std::uint16_t>(device, command_register, 7);
    EXPECT_EQ(machine.shared.address, before);
    EXPECT_TRUE(machine.other.address);
    EXPECT_TRUE(machine.reports.empty());
    machine.plug(card("late", {{.index = 3, .size_bytes = 4096, .device = machine.plain}}));
    machine.bridge->assign(PciMachine::windows).value();
    EXPECT_EQ(machine.function(2)->visible_address(2), before) << "who has an address keeps it";
    EXPECT_NE(machine.function(5)->programmed_address(3), 0U);
}

TEST(HostBridge, ADeviceWithoutAPlaceIsNamedAndNothingIsAssigned) {
    PciMachine machine;
    const Bar large{.index = 2, .size_bytes = std::uint64_t{1} << 30, .device = machine.plain};
    machine.plug(card("ivshmem 'mailbox'", {large}));
    const auto refused = machine.bridge->assign(PciMachine::windows);
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().message(),
                HasSubstr("PCI device 00:05.0 ivshmem 'mailbox' BAR2 of 1073741824 bytes"));
    EXPECT_EQ(machine.function(1)->programmed_address(0), 0U);
}

TEST(HostBridge, PinsAreSwizzledAndShared) {
    static_assert(HostBridge::line_of(0, 1) == 0 && HostBridge::line_of(1, 1) == 1);
    static_assert(HostBridge::line_of(4, 1) == 0 && HostBridge::line_of(3, 2) == 0);
    const PciMachine machine;
    const auto pin = std::make_shared<IntxPin>();
    machine.plug(Function::create({.name = "five", .intx = pin}).value(), 5);
    EXPECT_EQ(machine.read<std::uint8_t>(5, interrupt_line_register), 17);
    pin->set(true);
    machine.shmem_pin->set(true);
    pin->set(false);
    EXPECT_TRUE(machine.lines[1]->is_up());
    machine.shmem_pin->set(false);
    EXPECT_FALSE(machine.lines[1]->is_up());
    EXPECT_EQ(machine.lines[1]->count_raised(), 1U);
}

TEST(HostBridge, RandomGuestsNeverBringItOutOfStep) {
    std::random_device device;
    for (int round = 0; round < 20; ++round) {
        const auto seed = device();
        Choices choices{std::uint64_t{seed}};
        PciSession session{choices};
        for (int i = 0; i < 200; ++i) ASSERT_EQ(session.step(), "") << "seed " << seed << ", step " << i;
    }
}

TEST(HostBridge, ThreadsThatFightForOnePlaceLeaveItToOne) {
    PciMachine machine;
    const auto fight = [&machine](unsigned device) {
        for (std::uint16_t i = 0; i < 500; ++i) {
            machine.write<std::uint32_t>(device, 0x10,
                                         i % 3 == 0 ? 0xf000'0000 : 0xf000'0000 + 0x10'0000 * device);
            machine.write<std::uint16_t>(device, command_register, i % 5 == 0 ? 0 : command_memory);
            (void)machine.load<std::uint32_t>(0xf000'0000);
            machine.shmem_pin->pulse();
        }
        machine.write<std::uint32_t>(device, 0x10, 0xf000'0000);
        machine.write<std::uint16_t>(device, command_register, command_memory);
    };
    std::thread first{fight, 1};
    std::thread second{fight, 2};
    fight(4);
    first.join();
    second.join();
    int count_visible = 0;
    for (const unsigned device : {1U, 2U, 4U})
        if (machine.function(device)->visible_address(0)) ++count_visible;
    // The large one needs the whole place; the other two have theirs at its beginning, and one of them fits.
    EXPECT_EQ(count_visible, 1);
    EXPECT_FALSE(machine.other.is_wrong);
}

}  // namespace
}  // namespace guestmem::pci
