// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/inventory.hpp"

#include <gtest/gtest.h>

#include <set>

namespace guestmem::dma {
namespace {

Device function_at(PciAddress address, std::uint64_t registers) {
    Device device;
    device.name = to_string(address);
    device.pci = address;
    device.registers = registers;
    return device;
}

Device other(std::string name, std::uint64_t registers) {
    Device device;
    device.name = std::move(name);
    device.registers = registers;
    return device;
}

Inventory three_devices() {
    Inventory inventory;
    inventory.devices = {function_at(pci_address(0, 0, 18, 0), 0x1000),
                         function_at(pci_address(1, 0x12, 0, 3), 0x2000), other("9000000.dma", 0x9000000),
                         other("mem:0xfe000000", 0xfe000000)};
    return inventory;
}

TEST(InventoryTest, ADeviceIsFoundByEachWayToWriteIt) {
    const Inventory inventory = three_devices();
    EXPECT_EQ(inventory.find_device("0000:00:12.0"), 0U);
    EXPECT_EQ(inventory.find_device("00:12.0"), 0U);
    EXPECT_EQ(inventory.find_device("pci:0:18.0"), 0U) << "numbers of the user's words are decimal";
    EXPECT_EQ(inventory.find_device("0001:12:00.3"), 1U);
    EXPECT_EQ(inventory.find_device("9000000.dma"), 2U);
    EXPECT_EQ(inventory.find_device("mem:0x9000000"), 2U);
    EXPECT_EQ(inventory.find_device("mem:0xfe000000"), 3U);
    EXPECT_EQ(inventory.find_device("mem:2000"), 1U);
}

TEST(InventoryTest, WhatIsNotThereIsNotFound) {
    const Inventory inventory = three_devices();
    for (const char* name : {"", "00:12.1", "pci:0:12.0", "pci:0:32.0", "pci:0.18:0", "pci:", "mem:",
                             "mem:0x", "mem:0x9000001", "mem:1g", "9000000", "pci:256:0.0", "pci:0:18.8"}) {
        EXPECT_EQ(inventory.find_device(name), std::nullopt) << name;
    }
    EXPECT_EQ(Inventory{}.find_device("00:12.0"), std::nullopt);
    EXPECT_EQ(Inventory{}.find_device("mem:0"), std::nullopt);
}

TEST(InventoryTest, EachReasonAndProtectionHasAWordOfItsOwn) {
    std::set<std::string_view> words;
    for (const auto reason : {JoinReason::shared_identity, JoinReason::alias, JoinReason::conventional_bridge,
                              JoinReason::missing_acs_port, JoinReason::missing_acs_function,
                              JoinReason::unknown_acs, JoinReason::kernel_group}) {
        EXPECT_TRUE(words.insert(to_string(reason)).second) << to_string(reason);
    }
    for (const auto protection : {Protection::behind_unit, Protection::unit_not_used, Protection::none}) {
        EXPECT_TRUE(words.insert(to_string(protection)).second) << to_string(protection);
    }
}

}  // namespace
}  // namespace guestmem::dma
