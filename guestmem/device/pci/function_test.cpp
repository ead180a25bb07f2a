// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/function.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <span>
#include <thread>
#include <type_traits>

#include "guestmem/device/pci/testing/pci_machine.hpp"

namespace guestmem::pci {
namespace {

using guestmem::testing::PciMachine;
using guestmem::testing::PlainRegisters;
using ::testing::HasSubstr;

constexpr unsigned shmem = 1;

TEST(Function, IsBornWithDecodingOffAndAPinThatIsItsLine) {
    const PciMachine machine;
    EXPECT_EQ(machine.read<std::uint16_t>(shmem, command_register), 0);
    EXPECT_EQ(machine.read<std::uint8_t>(shmem, interrupt_pin_register), 1);
    EXPECT_EQ(machine.read<std::uint8_t>(shmem, interrupt_line_register), 17);
    machine.write<std::uint16_t>(shmem, interrupt_line_register, 0x0909);
    EXPECT_EQ(machine.read<std::uint16_t>(shmem, interrupt_line_register), 0x0109)
        << "only the line is the guest's";
    EXPECT_EQ(machine.read<std::uint16_t>(3, interrupt_line_register), 0) << "it has no pin";
}

TEST(Function, InterruptStatusShowsWhatInterruptDisableHolds) {
    const PciMachine machine;
    machine.shmem_pin->set(true);
    EXPECT_TRUE(machine.lines[1]->is_up());
    machine.write<std::uint16_t>(shmem, command_register, command_interrupt_disable);
    EXPECT_FALSE(machine.lines[1]->is_up());
    EXPECT_EQ(machine.read<std::uint16_t>(shmem, status_register), status_capabilities | status_interrupt);
    machine.shmem_pin->set(false);
    EXPECT_EQ(machine.read<std::uint16_t>(shmem, status_register), status_capabilities);
    machine.write<std::uint16_t>(shmem, command_register, 0);
    EXPECT_EQ(machine.lines[1]->count_raised(), 1U);
}

TEST(Function, OnlyKnownBitsOfTheCommandCanBeSet) {
    const PciMachine machine;
    for (unsigned device = 0; device < 5; ++device)
        machine.write<std::uint32_t>(device, command_register, ~0U);
    EXPECT_EQ(machine.read<std::uint16_t>(0, command_register), command_bus_master);
    EXPECT_EQ(machine.read<std::uint16_t>(1, command_register),
              command_memory | command_bus_master | command_interrupt_disable);
    EXPECT_EQ(machine.read<std::uint16_t>(3, command_register),
              command_io | command_memory | command_bus_master);
    EXPECT_EQ(machine.read<std::uint16_t>(1, status_register), status_capabilities);
}

TEST(Function, WhatDoesNotFitIsRefusedByName) {
    const auto bad_bar = Function::create({.name = "card 7", .bars = {{.index = 9, .size_bytes = 16}}});
    ASSERT_FALSE(bad_bar);
    EXPECT_THAT(bad_bar.error().message(), HasSubstr("card 7 BAR9"));
    const auto connector = std::make_shared<guestmem::testing::FakeMsiConnector>();
    const std::vector<std::shared_ptr<Capability>> many(9, Msi::create({.connector = connector}).value());
    const auto too_many = Function::create({.name = "card 8", .capabilities = many});
    ASSERT_FALSE(too_many);
    EXPECT_THAT(too_many.error().message(), HasSubstr("card 8: capability 0x5"));
}

// What has no bus cannot be plugged: a slot is not made without both.
static_assert(!std::is_default_constructible_v<Function::Slot>);

TEST(Function, ThatGoesTakesItsWindowsAlong) {
    Bus memory{"memory", ~std::uint64_t{0}};
    Bus ports{"port", 0xffff};
    bool is_mapped = false;
    const auto moved = [&](std::optional<std::uint64_t> to) -> Result<void> {
        is_mapped = to.has_value();
        return {};
    };
    auto function = Function::create({.name = "f",
                                      .bars = {{.index = 0, .size_bytes = 4096, .moved = moved},
                                               {.index = 1,
                                                .kind = BarKind::io,
                                                .size_bytes = 16,
                                                .device = std::make_shared<PlainRegisters>()}}})
                        .value();
    const std::array<std::byte, 1> on{std::byte{3}};
    function->program_address(0, 0x10'0000);
    function->program_address(1, 0x500);
    EXPECT_FALSE(function->write_config(command_register, on)) << "it is plugged in nowhere";
    EXPECT_FALSE(is_mapped);
    function->plug({.memory = memory, .ports = ports});
    EXPECT_TRUE(is_mapped);
    EXPECT_EQ(ports.windows().size(), 1U);
    function.reset();
    EXPECT_FALSE(is_mapped);
    EXPECT_TRUE(memory.windows().empty());
    EXPECT_TRUE(ports.windows().empty());
}

// A device raises its pin with a mutex held that its moved() takes: the orders must not cross.
TEST(Function, ADeviceMayInterruptWhileItsBarMoves) {
    Bus memory{"memory", ~std::uint64_t{0}};
    Bus ports{"port", 0xffff};
    std::mutex device_mutex;
    const auto pin = std::make_shared<IntxPin>();
    const auto moved = [&](std::optional<std::uint64_t>) -> Result<void> {
        const std::scoped_lock lock{device_mutex};
        return {};
    };
    const auto function =
        Function::create({.name = "f", .intx = pin, .bars = {{.size_bytes = 4096, .moved = moved}}}).value();
    function->plug({.memory = memory, .ports = ports});
    function->program_address(0, 0x10'0000);
    std::thread device{[&] {
        for (int i = 0; i < 3000; ++i) {
            const std::scoped_lock lock{device_mutex};
            pin->pulse();
        }
    }};
    for (int i = 0; i < 3000; ++i) {
        const std::array<std::byte, 1> command{i % 2 == 0 ? std::byte{2} : std::byte{0}};
        function->write_config(command_register, command);
    }
    device.join();
    EXPECT_FALSE(function->visible_address(0));
    function->unplug();
}

}  // namespace
}  // namespace guestmem::pci
