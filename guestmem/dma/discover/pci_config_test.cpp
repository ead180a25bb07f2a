// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/pci_config.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "guestmem/dma/discover/testing/config_space.hpp"

namespace guestmem::dma {
namespace {

using testing::ConfigSpace;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct Read {
    PciFunction function;
    ConfigNotes notes;
};

Read read(ConfigSpace space) {
    Read result;
    result.notes = read_pci_config(space.bytes(), result.function).value();
    return result;
}

TEST(PciConfig, TheHeaderSaysWhoItIs) {
    ConfigSpace space;
    space.put32(0x08, 0x02000001).put8(0x0e, 0x80).put32(0x10, 0xe001).put32(0x14, 0xfebc0000);
    const auto [function, notes] = read(space);
    EXPECT_EQ(function.vendor, 0x8086);
    EXPECT_EQ(function.device, 0x10d3);
    EXPECT_EQ(function.class_code, 0x020000U);
    EXPECT_EQ(function.header_type, 0);
    EXPECT_TRUE(function.is_multifunction);
    EXPECT_EQ(function.first_register, 0xfebc0000U) << "not the port";
    EXPECT_EQ(function.secondary_bus, std::nullopt);
    EXPECT_THAT(notes.problem, IsEmpty());
}

TEST(PciConfig, AWideBarIsOneAddress) {
    EXPECT_EQ(read(ConfigSpace{}.put32(0x10, 0xc).put32(0x14, 0x38)).function.first_register,
              0x38'0000'0000U);
    EXPECT_EQ(read(ConfigSpace{}.put32(0x24, 0x4)).function.first_register, std::nullopt)
        << "there is no other half";
    EXPECT_EQ(read(ConfigSpace{}.put8(0x0e, 1).put32(0x18, 0x02010100)).function.first_register, std::nullopt)
        << "a bridge has bus numbers there";
}

TEST(PciConfig, BridgesHaveBusesAndCardBusHasItsListElsewhere) {
    ConfigSpace bridge;
    bridge.put8(0x0e, 0x81).put8(0x19, 5).put8(0x1a, 9);
    EXPECT_EQ(read(bridge).function.secondary_bus, 5);
    EXPECT_EQ(read(bridge).function.subordinate_bus, 9);
    ConfigSpace cardbus;
    cardbus.put8(0x0e, 2).put8(0x19, 3).put8(0x1a, 4).put8(0x14, 0x80).put16(0x06, 1 << 4).put8(0x80, 5);
    EXPECT_EQ(read(cardbus).function.subordinate_bus, 4);
    EXPECT_EQ(read(cardbus).function.has_msi, true);
}

TEST(PciConfig, CapabilitiesAreFoundInTheirLists) {
    ConfigSpace space;
    space.capability(0x40, 0x01, 0x50).capability(0x50, 0x11, 0xa0).express(0xa0, 4, 0, true);
    space.extended(0x100, 0x0001, 0x140).extended(0x140, 0x000d, 0x200).extended(0x200, 0x000f, 0);
    space.put16(0x144, 0x5f).put16(0x146, 0x1d);
    const auto [function, notes] = read(space);
    EXPECT_EQ(function.port, PortType::root_port);
    EXPECT_TRUE(function.has_slot);
    EXPECT_EQ(function.has_msi, true);
    ASSERT_TRUE(function.access_control);
    EXPECT_EQ(function.access_control->can, 0x5f);
    EXPECT_EQ(function.access_control->is_on, 0x1d);
    EXPECT_EQ(function.has_address_services, true);
    EXPECT_THAT(notes.problem, IsEmpty());
    EXPECT_FALSE(notes.is_cut);
}

TEST(PciConfig, EachTypeOfPortHasItsName) {
    const std::vector<std::pair<unsigned, PortType>> types{{0, PortType::endpoint},
                                                           {1, PortType::legacy_endpoint},
                                                           {4, PortType::root_port},
                                                           {5, PortType::upstream_port},
                                                           {6, PortType::downstream_port},
                                                           {7, PortType::express_to_pci_bridge},
                                                           {8, PortType::pci_to_express_bridge},
                                                           {9, PortType::integrated_endpoint},
                                                           {10, PortType::event_collector},
                                                           {15, PortType::endpoint}};
    for (const auto& [number, type] : types)
        EXPECT_EQ(read(ConfigSpace{}.express(0x40, number)).function.port, type) << number;
    EXPECT_EQ(read(ConfigSpace{}.capability(0x40, 5, 0)).function.port, PortType::conventional);
}

TEST(PciConfig, WhatIsNotReadableIsLeftOpen) {
    ConfigSpace whole;
    whole.express(0x40, 0);
    ConfigSpace header;
    header.express(0x40, 0);
    header.bytes().resize(64);
    const auto cut = read(header);
    EXPECT_TRUE(cut.notes.is_cut);
    EXPECT_EQ(cut.function.access_control, std::nullopt);
    EXPECT_EQ(cut.function.has_msi, std::nullopt);
    EXPECT_EQ(cut.function.has_address_services, std::nullopt);
    ConfigSpace conventional_part = whole;
    conventional_part.bytes().resize(256);
    const auto half = read(conventional_part);
    EXPECT_TRUE(half.notes.is_cut);
    EXPECT_EQ(half.function.port, PortType::endpoint);
    EXPECT_EQ(half.function.has_msi, false);
    EXPECT_EQ(half.function.access_control, std::nullopt);
    EXPECT_EQ(read(whole).function.access_control->can, 0) << "read, and there is none";
}

TEST(PciConfig, AFunctionWithoutCapabilitiesIsKnownFromItsHeader) {
    const auto [function, notes] = read(ConfigSpace{64});
    EXPECT_FALSE(notes.is_cut);
    EXPECT_EQ(function.has_msi, false);
    EXPECT_EQ(function.access_control->can, 0);
    const auto conventional = read(ConfigSpace{256}.capability(0x40, 5, 0));
    EXPECT_FALSE(conventional.notes.is_cut) << "conventional PCI has no more";
    EXPECT_EQ(conventional.function.access_control->can, 0);
}

TEST(PciConfig, ListsInCirclesAndOutOfTheSpaceEnd) {
    ConfigSpace circle;
    circle.capability(0x40, 5, 0x50).express(0x50, 6, 0x40);
    EXPECT_THAT(read(circle).notes.problem, HasSubstr("runs in a circle through 0x40"));
    EXPECT_EQ(read(circle).function.port, PortType::downstream_port);
    EXPECT_THAT(read(ConfigSpace{}.capability(0x40, 5, 0x20)).notes.problem,
                HasSubstr("into the header, to 0x20"));
    EXPECT_THAT(read(ConfigSpace{}.capability(0x40, 0xff, 0xff)).notes.problem, HasSubstr("ends in ones"));
    ConfigSpace extended;
    extended.express(0x40, 0).extended(0x100, 1, 0x200).extended(0x200, 0xd, 0x100).put16(0x204, 3);
    EXPECT_THAT(read(extended).notes.problem,
                HasSubstr("extended capabilities runs in a circle through 0x100"));
    EXPECT_EQ(read(extended).function.access_control->can, 3);
    ConfigSpace down;
    down.express(0x40, 0).extended(0x100, 1, 0x80);
    EXPECT_THAT(read(down).notes.problem, HasSubstr("extended capabilities leads to 0x80"));
    ConfigSpace far;
    far.bytes().resize(config_bytes - 1);
    far.express(0x40, 0).extended(0x100, 1, 0xffc);
    EXPECT_TRUE(read(far).notes.is_cut) << "not all of it could be read";
    ConfigSpace last;
    last.express(0x40, 0).extended(0x100, 1, 0xffc).extended(0xffc, 0xd, 0);
    EXPECT_EQ(read(last).function.access_control->can, 0) << "its registers are outside";
}

TEST(PciConfig, AConfigSpaceOfOnesDoesNotAnswerAndAVirtualFunctionDoes) {
    ConfigSpace gone;
    std::ranges::fill(gone.bytes(), std::byte{0xff});
    EXPECT_THAT(read(gone).notes.problem, HasSubstr("does not answer"));
    EXPECT_EQ(read(gone).function.vendor, 0xffff);
    EXPECT_EQ(read(gone).function.header_type, 0);
    ConfigSpace virtual_function;
    virtual_function.put32(0, 0xffff'ffff).express(0x40, 0);
    EXPECT_EQ(read(virtual_function).function.port, PortType::endpoint);
    EXPECT_THAT(read(virtual_function).notes.problem, IsEmpty());
}

TEST(PciConfig, LessThanAHeaderIsAnErrorAndMoreThanTheSpaceIsNotRead) {
    PciFunction function;
    EXPECT_EQ(read_pci_config(ConfigSpace{63}.bytes(), function).error().code(), Errc::corrupt);
    EXPECT_EQ(function.vendor, 0xffff);
    EXPECT_TRUE(read_pci_config(ConfigSpace{5000}.bytes(), function));
}

TEST(PciConfig, SerialNumbersAreBlankedAndNothingElse) {
    ConfigSpace space;
    space.capability(0x40, 0x03, 0x50).put32(0x44, 0x12345678).express(0x50, 0);
    space.extended(0x100, 0x0003, 0x200).put32(0x104, 0x1b213456).put32(0x108, 0x90e2ba12).put32(0x10c, 0x77);
    space.extended(0x200, 0x000d, 0).put16(0x204, 0x1f);
    ConfigSpace expected = space;
    expected.put32(0x44, 0).put32(0x104, 0).put32(0x108, 0);
    blank_serial_numbers(space.bytes());
    EXPECT_EQ(space.bytes(), expected.bytes());
    ConfigSpace short_space{64};
    blank_serial_numbers(short_space.bytes());
    EXPECT_EQ(short_space.bytes(), ConfigSpace{64}.bytes());
}

}  // namespace
}  // namespace guestmem::dma
