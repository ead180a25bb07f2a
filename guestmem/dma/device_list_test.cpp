// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/device_list.hpp"

#include <gtest/gtest.h>

#include "guestmem/dma/testing/machines.hpp"

namespace guestmem::dma {
namespace {

using testing::endpoint;

std::vector<std::string> names(const DeviceList& list) {
    std::vector<std::string> all;
    for (const Device& device : list.devices()) {
        all.push_back(device.name);
    }
    return all;
}

TEST(DeviceListTest, PlatformDevicesAreListedWhenSomebodySpeaksOfTheirDma) {
    SourceFacts facts;
    facts.covers = {{.unit = "u", .which = MmioDevice{0x3000}},
                    {.unit = "u", .which = NamedDevice{"\\_SB.GPIO"}}};
    HostView view;
    view.functions = {endpoint(pci_address(0, 1, 0, 0))};
    view.platform_devices = {{.name = "grouped", .group = 3},
                             {.name = "behind", .kernel_unit = "smmu3.0x1"},
                             {.name = "by registers", .registers = 0x3000},
                             {.name = "by node", .firmware_node = "\\_SB_.GPIO"},
                             {.name = "silent", .registers = 0x4000}};
    ComplaintList complaints;
    const DeviceList list(facts, view, complaints);
    EXPECT_EQ(names(list),
              (std::vector<std::string>{"0000:01:00.0", "behind", "by node", "by registers", "grouped"}));
    EXPECT_EQ(list.find(MmioDevice{0x3000}), std::vector<std::uint32_t>{3});
    EXPECT_EQ(list.find(NamedDevice{"\\_SB.GPIO"}), std::vector<std::uint32_t>{2});
    EXPECT_TRUE(list.find(MmioDevice{0x4000}).empty());
    EXPECT_TRUE(list.find(PciRange{}).empty());
    EXPECT_EQ(list.kernel_unit(1), "smmu3.0x1");
}

TEST(DeviceListTest, WhatIsOnlySpokenOfIsADeviceOnce) {
    SourceFacts facts;
    const Origin user{Source::user, "board.smmu:3"};
    facts.covers = {{.unit = "u", .which = MmioDevice{0xfe000000}, .origin = user},
                    {.unit = "u", .which = MmioDevice{0xfe000000}, .origin = user},
                    {.unit = "u", .which = NamedDevice{"/soc/dma"}},
                    {.unit = "u", .which = PciRange{0, 0x100, 0x100}, .origin = user},
                    {.unit = "u", .which = PciRange{0, 0x200, 0x200}, .origin = {Source::dmar}}};
    HostView view;
    view.groups = {{.number = 4, .members = {"0000:07:00.0", "lost.dma"}}};
    ComplaintList complaints;
    const DeviceList list(facts, view, complaints);
    EXPECT_EQ(names(list), (std::vector<std::string>{"0000:01:00.0", "0000:07:00.0", "/soc/dma", "lost.dma",
                                                     "mem:0xfe000000"}))
        << "what firmware lists and the machine has not is no device";
    EXPECT_EQ(list.devices()[1].kernel_group, 4U);
    EXPECT_EQ(list.devices()[3].kernel_group, 4U);
    EXPECT_EQ(list.devices()[4].registers, 0xfe000000U);
    constexpr bool is_seen[] = {false, true, false, true, false};
    for (std::size_t i = 0; i < std::size(is_seen); ++i) {
        EXPECT_EQ(list.devices()[i].is_seen, is_seen[i]) << list.devices()[i].name;
    }
    EXPECT_EQ(list.find(MmioDevice{0xfe000000}), std::vector<std::uint32_t>{4});
}

TEST(DeviceListTest, AFunctionOfALargeSegmentIsADeviceWithoutAnAddress) {
    HostView view;
    PlatformDevice port{.name = "10000:00:00.0"};
    port.is_pci = port.is_bridge = true;
    PlatformDevice drive{.name = "10000:01:00.0"};
    drive.is_pci = true;
    drive.class_code = 0x010802;
    drive.title = "8086:0a54 Non-Volatile memory controller";
    view.platform_devices = {port, drive};
    view.groups = {{.number = 4, .members = {"10000:01:00.0"}}};
    ComplaintList complaints;
    const DeviceList list({}, view, complaints);
    EXPECT_EQ(names(list), (std::vector<std::string>{"10000:00:00.0", "10000:01:00.0"}));
    EXPECT_TRUE(list.devices()[0].is_bridge);
    EXPECT_FALSE(list.devices()[1].is_bridge);
    EXPECT_EQ(list.devices()[1].pci, std::nullopt);
    EXPECT_EQ(list.devices()[1].title, drive.title);
    EXPECT_EQ(list.devices()[1].class_code, 0x010802U);
    EXPECT_TRUE(list.devices()[1].is_seen);
}

TEST(DeviceListTest, AFunctionThatComesTwiceIsOneAndAComplaint) {
    HostView view;
    view.functions = {endpoint(pci_address(0, 1, 0, 0)), endpoint(pci_address(0, 0, 0, 0)),
                      endpoint(pci_address(0, 1, 0, 0))};
    view.functions[0].driver = "first";
    ComplaintList complaints;
    const DeviceList list({}, view, complaints);
    EXPECT_EQ(names(list), (std::vector<std::string>{"0000:00:00.0", "0000:01:00.0"}));
    EXPECT_EQ(list.devices()[1].driver, "first");
    EXPECT_EQ(complaints.take().size(), 1U);
}

TEST(DeviceListTest, ASelectorSelectsAtMostSoManyDevices) {
    SourceFacts facts;
    facts.covers = {{.unit = "u", .which = MmioDevice{0x3000}}};
    HostView view;
    for (std::size_t i = 0; i <= DeviceList::most_matches; ++i) {
        view.platform_devices.push_back({.name = "d" + std::to_string(100 + i), .registers = 0x3000});
    }
    ComplaintList complaints;
    const DeviceList list(facts, view, complaints);
    EXPECT_EQ(list.devices().size(), DeviceList::most_matches + 1);
    EXPECT_EQ(list.find(MmioDevice{0x3000}).size(), DeviceList::most_matches);
}

TEST(DeviceListTest, FillingUnderscoresOfAcpiPathsDoNotCount) {
    EXPECT_EQ(firmware_node_key("\\_SB_.PCI0.I2C_"), "\\_SB.PCI0.I2C");
    EXPECT_EQ(firmware_node_key("\\_SB.PCI0.I2C"), "\\_SB.PCI0.I2C");
    EXPECT_EQ(firmware_node_key("/soc/dma_"), "/soc/dma_") << "a device tree has names as long as it likes";
    EXPECT_EQ(firmware_node_key(""), "");
}

}  // namespace
}  // namespace guestmem::dma
