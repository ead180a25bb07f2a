// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/bars.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/device/pci/testing/pci_machine.hpp"

namespace guestmem::pci {
namespace {

using guestmem::testing::PciMachine;
using guestmem::testing::PlainRegisters;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr unsigned shmem = 1;
constexpr unsigned ivshmem = 2;
constexpr unsigned ports = 3;
constexpr unsigned memory = 4;

std::string refusal(Bar bar) {
    if (!bar.device) bar.device = std::make_shared<PlainRegisters>();
    const auto made = Bars::create("d", {std::move(bar)}, nullptr);
    return made ? "" : made.error().message();
}

TEST(Bars, WhatCannotBeIsRefusedByName) {
    EXPECT_THAT(refusal({.index = 6, .size_bytes = 16}), HasSubstr("d BAR6"));
    EXPECT_THAT(refusal({.index = 5, .kind = BarKind::memory64, .size_bytes = 16}), HasSubstr("two"));
    EXPECT_THAT(refusal({.size_bytes = 0}), HasSubstr("power of two"));
    EXPECT_THAT(refusal({.size_bytes = 4097}), HasSubstr("power of two"));
    EXPECT_THAT(refusal({.size_bytes = 8}), HasSubstr("16"));
    EXPECT_THAT(refusal({.size_bytes = std::uint64_t{1} << 32}), HasSubstr("2147483648"));
    EXPECT_THAT(refusal({.kind = BarKind::io, .size_bytes = 512}), HasSubstr("256"));
    EXPECT_THAT(refusal({.kind = BarKind::io, .is_prefetchable = true, .size_bytes = 4}), HasSubstr("ports"));
    EXPECT_EQ(refusal({.size_bytes = 16}), "");
    EXPECT_EQ(refusal({.size_bytes = std::uint64_t{1} << 31}), "");
    EXPECT_EQ(refusal({.index = 4, .kind = BarKind::memory64, .size_bytes = std::uint64_t{1} << 40}), "");
    EXPECT_FALSE(Bars::create("d", {{.size_bytes = 4096}}, nullptr)) << "nothing to show";
    const auto device = std::make_shared<PlainRegisters>();
    const auto twice = Bars::create("d",
                                    {{.kind = BarKind::memory64, .size_bytes = 16, .device = device},
                                     {.index = 1, .size_bytes = 16, .device = device}},
                                    nullptr);
    ASSERT_FALSE(twice);
    EXPECT_THAT(twice.error().message(), HasSubstr("d BAR1"));
}

// PCI 3.0, 6.2.5.1: a register of ones reads as its size and its kind.
TEST(Bars, AGuestFindsTheSizesOfAll) {
    const PciMachine machine;
    const auto sized = [&](unsigned device, unsigned index) {
        const std::uint64_t at = first_bar_register + 4 * index;
        const auto before = machine.read<std::uint32_t>(device, at);
        machine.write<std::uint32_t>(device, at, 0xffff'ffff);
        const auto size = machine.read<std::uint32_t>(device, at);
        machine.write<std::uint32_t>(device, at, before);
        EXPECT_EQ(machine.read<std::uint32_t>(device, at), before);
        return size;
    };
    EXPECT_EQ(sized(shmem, 0), 0xffff'f000U);
    EXPECT_EQ(sized(shmem, 1), 0U);
    EXPECT_EQ(sized(ivshmem, 0), 0xffff'ff00U);
    EXPECT_EQ(sized(ivshmem, 1), 0xffff'f000U);
    EXPECT_EQ(sized(ivshmem, 2), 0xfff0'000cU);
    EXPECT_EQ(sized(ivshmem, 3), 0xffff'ffffU);
    EXPECT_EQ(sized(ivshmem, 4), 0U);
    EXPECT_EQ(sized(ports, 0), 0xffff'ffe1U);
    EXPECT_EQ(sized(ports, 1), 0xffff'0004U);
    EXPECT_EQ(sized(0, 0), 0U);
}

TEST(Bars, ABarIsVisibleWhileItIsDecoded) {
    const PciMachine machine;
    machine.write<std::uint32_t>(shmem, 0x10, 0xf123'4000);
    EXPECT_EQ(machine.load<std::uint32_t>(0xf123'4004), 0xffff'ffffU);
    machine.write<std::uint16_t>(shmem, command_register, command_memory);
    EXPECT_EQ(machine.load<std::uint32_t>(0xf123'4004), 0x0706'0504U);
    machine.write<std::uint8_t>(shmem, 0x11, 0x50);
    EXPECT_EQ(machine.load<std::uint32_t>(0xf123'4004), 0xffff'ffffU);
    EXPECT_EQ(machine.load<std::uint32_t>(0xf123'5004), 0x0706'0504U) << "a byte moves it, too";
    machine.write<std::uint16_t>(shmem, command_register, command_io | command_bus_master);
    EXPECT_EQ(machine.load<std::uint32_t>(0xf123'5004), 0xffff'ffffU);
    EXPECT_EQ(machine.read<std::uint16_t>(shmem, command_register), command_bus_master)
        << "without ports there is no bit to decode them";

    machine.write<std::uint32_t>(ports, 0x10, 0xc100);
    machine.write<std::uint16_t>(ports, command_register, command_io);
    EXPECT_EQ(machine.in<std::uint8_t>(0xc11f), 0x1f);
    EXPECT_EQ(machine.in<std::uint8_t>(0xc120), 0xff);
}

TEST(Bars, MemoryIsMappedWhereItsBarIsVisible) {
    PciMachine machine;
    machine.write<std::uint64_t>(ivshmem, 0x18, 0x1'2340'0000);
    EXPECT_EQ(machine.shared.count_moves, 0);
    machine.write<std::uint16_t>(ivshmem, command_register, command_memory);
    EXPECT_EQ(machine.shared.address, 0x1'2340'0000U);
    machine.write<std::uint16_t>(ivshmem, command_register, command_memory | command_bus_master);
    EXPECT_EQ(machine.shared.count_moves, 1) << "what stays is not mapped again";
    machine.write<std::uint32_t>(ivshmem, 0x1c, 2);
    EXPECT_EQ(machine.shared.address, 0x2'2340'0000U);
    EXPECT_EQ(machine.function(ivshmem)->visible_address(2), 0x2'2340'0000U);
    machine.write<std::uint16_t>(ivshmem, command_register, 0);
    EXPECT_FALSE(machine.shared.address);
}

TEST(Bars, NeitherZeroNorASizeBeingAskedForIsAnAddress) {
    PciMachine machine;
    machine.write<std::uint16_t>(memory, command_register, command_memory);
    machine.write<std::uint64_t>(memory, 0x10, ~std::uint64_t{0});
    machine.write<std::uint64_t>(memory, 0x10, 0);
    EXPECT_EQ(machine.other.count_moves, 0);
    EXPECT_THAT(machine.reports, SizeIs(0));
    machine.write<std::uint16_t>(shmem, command_register, command_memory);
    machine.write<std::uint32_t>(shmem, 0x10, 0xffff'ffff);
    EXPECT_EQ(machine.load<std::uint8_t>(0xffff'f010), 0xff);
}

TEST(Bars, OneThatDoesNotFitIsNotVisibleAndSaidOnce) {
    PciMachine machine;
    machine.write<std::uint16_t>(shmem, command_register, command_memory);
    machine.write<std::uint32_t>(shmem, 0x10, 0xf000'0000);
    for (int i = 0; i < 3; ++i) machine.write<std::uint32_t>(shmem, 0x10, PciMachine::io_apic);
    EXPECT_FALSE(machine.function(shmem)->visible_address(0));
    EXPECT_EQ(machine.load<std::uint8_t>(0xf000'0010), 0xff) << "it is not where it was, either";
    EXPECT_EQ(machine.load<std::uint8_t>(PciMachine::io_apic + 0x10), 0x10);
    ASSERT_THAT(machine.reports, SizeIs(1));
    EXPECT_THAT(machine.reports[0], HasSubstr("shmem BAR0"));
    EXPECT_THAT(machine.reports[0], HasSubstr("I/O APIC at 0xfec00000"));
}

TEST(Bars, MemoryOverRamIsNotVisibleAndLeavesNoWindow) {
    PciMachine machine;
    const std::size_t count_before = machine.memory.windows().size();
    machine.write<std::uint16_t>(memory, command_register, command_memory);
    machine.write<std::uint64_t>(memory, 0x10, 0x10'0000);
    EXPECT_FALSE(machine.function(memory)->visible_address(0));
    EXPECT_EQ(machine.memory.windows().size(), count_before);
    ASSERT_THAT(machine.reports, SizeIs(1));
    EXPECT_THAT(machine.reports[0], HasSubstr("memory BAR0 at 0x100000: there is RAM"));
}

TEST(Bars, OneThatWaitsForRoomGetsItWhenTheOtherLeaves) {
    PciMachine machine;
    for (const unsigned device : {shmem, ivshmem}) {
        machine.write<std::uint32_t>(device, 0x10, 0xf000'0000);
        machine.write<std::uint16_t>(device, command_register, command_memory);
    }
    EXPECT_TRUE(machine.function(shmem)->visible_address(0));
    EXPECT_FALSE(machine.function(ivshmem)->visible_address(0));
    machine.write<std::uint32_t>(shmem, 0x10, 0xf000'1000);
    EXPECT_TRUE(machine.function(shmem)->visible_address(0));
    EXPECT_TRUE(machine.function(ivshmem)->visible_address(0));
    EXPECT_TRUE(machine.bridge->remove(ivshmem));
    machine.write<std::uint32_t>(memory, 0x10, 0xf000'0000);
    EXPECT_FALSE(machine.other.address);
    machine.write<std::uint16_t>(memory, command_register, command_memory);
    EXPECT_FALSE(machine.other.address) << "the other is inside its megabyte";
    EXPECT_TRUE(machine.bridge->remove(shmem));
    EXPECT_EQ(machine.other.address, 0xf000'0000U);
}

TEST(Bars, MemoryThatCannotLeaveStaysWhereItIsAndIsTriedAgain) {
    bool is_stuck = false;
    std::optional<std::uint64_t> mapped;
    std::vector<std::string> reports;
    const auto moved = [&](std::optional<std::uint64_t> to) -> Result<void> {
        if (!to && is_stuck) return Error{Errc::io, "the slot does not go"};
        mapped = to;
        return {};
    };
    PciMachine machine;
    auto function =
        Function::create({.name = "stuck",
                          .bars = {{.index = 0, .size_bytes = 4096, .moved = moved}},
                          .report = [&](const Error& error) { reports.push_back(error.message()); }})
            .value();
    machine.plug(function, 9);
    machine.write<std::uint32_t>(9, 0x10, 0xf000'0000);
    machine.write<std::uint16_t>(9, command_register, command_memory);
    is_stuck = true;
    machine.write<std::uint32_t>(9, 0x10, 0xf000'1000);
    EXPECT_EQ(function->visible_address(0), 0xf000'0000U) << "it is there, and says so";
    EXPECT_EQ(mapped, 0xf000'0000U);
    ASSERT_THAT(reports, SizeIs(1));
    EXPECT_THAT(reports[0], HasSubstr("the slot does not go"));
    machine.write<std::uint32_t>(shmem, 0x10, 0xf000'0000);
    machine.write<std::uint16_t>(shmem, command_register, command_memory);
    EXPECT_FALSE(machine.function(shmem)->visible_address(0)) << "its place is not free";
    is_stuck = false;
    machine.write<std::uint8_t>(9, interrupt_line_register, 0);
    EXPECT_EQ(function->visible_address(0), 0xf000'1000U)
        << "the next write of the configuration tries again";
    EXPECT_EQ(mapped, 0xf000'1000U);
    EXPECT_TRUE(machine.function(shmem)->visible_address(0));
    EXPECT_TRUE(machine.bridge->remove(9));
    EXPECT_FALSE(mapped);
}

TEST(Bars, TwoOfOneFunctionCanChangePlacesInOneWrite) {
    PciMachine machine;
    machine.write<std::uint64_t>(ivshmem, 0x10, 0xf000'1000'f000'0000);
    machine.write<std::uint16_t>(ivshmem, command_register, command_memory);
    machine.write<std::uint64_t>(ivshmem, 0x10, 0xf000'0000'f000'1000);
    EXPECT_EQ(machine.function(ivshmem)->visible_address(0), 0xf000'1000U);
    EXPECT_EQ(machine.function(ivshmem)->visible_address(1), 0xf000'0000U);
    EXPECT_THAT(machine.reports, SizeIs(0));
}

}  // namespace
}  // namespace guestmem::pci
