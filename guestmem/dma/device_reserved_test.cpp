// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/device_reserved.hpp"

#include <gtest/gtest.h>

#include "guestmem/dma/testing/machines.hpp"

namespace guestmem::dma {
namespace {

using testing::bridge;
using testing::endpoint;

struct Laid {
    std::vector<Device> devices;
    std::vector<Complaint> complaints;
};

Laid lay(const SourceFacts& facts, const HostView& view, const std::vector<Unit>& units = {}) {
    ComplaintList complaints;
    DeviceList list(facts, view, complaints);
    const PciTopology topology(list.functions(), complaints);
    for (Device& device : list.devices()) {
        if (!units.empty()) {
            device.unit = 0;
        }
    }
    lay_reserved(facts, view, topology, units, list, complaints);
    return {list.devices(), complaints.take()};
}

ReservedFact rmrr(std::vector<Selector> who, std::uint64_t first, Source source = Source::dmar) {
    return {.who = std::move(who), .first = first, .last = first + 0xfff, .origin = {source, "offset 0x60"}};
}

TEST(DeviceReservedTest, RangesGoToTheDevicesOfTheirPaths) {
    SourceFacts facts;
    facts.reserved = {rmrr({PciPath{.hops = {{1, 0}}, .is_bridge = true}, PciPath{.hops = {{2, 0}}}}, 0x9000),
                      rmrr({PciPath{.hops = {{2, 0}}}}, 0x1000)};
    HostView view;
    view.functions = {bridge(pci_address(0, 0, 1, 0), PortType::root_port, 1, 1),
                      endpoint(pci_address(0, 0, 2, 0)), endpoint(pci_address(0, 0, 3, 0)),
                      endpoint(pci_address(0, 1, 0, 0))};
    const Laid laid = lay(facts, view);
    ASSERT_EQ(laid.devices[1].reserved.size(), 2U);
    EXPECT_EQ(laid.devices[1].reserved[0].first, 0x1000U) << "ascending";
    EXPECT_EQ(laid.devices[1].reserved[1].first, 0x9000U);
    EXPECT_EQ(laid.devices[1].reserved[0].origin.place, "offset 0x60");
    EXPECT_TRUE(laid.devices[2].reserved.empty());
    EXPECT_EQ(laid.devices[3].reserved.size(), 1U);
}

TEST(DeviceReservedTest, OnlyDmarsRangesForUsbAndGraphicsAreRelaxable) {
    const auto kind_for = [](std::uint32_t class_code, Source source) {
        SourceFacts facts;
        facts.reserved = {rmrr({PciRange{}}, 0x1000, source)};
        HostView view;
        view.functions = {endpoint(pci_address(0, 0, 2, 0))};
        view.functions[0].class_code = class_code;
        const Laid laid = lay(facts, view);
        return laid.devices.at(0).reserved.at(0).kind;
    };
    EXPECT_EQ(kind_for(0x0c0330, Source::dmar), ReservedKind::direct_relaxable);
    EXPECT_EQ(kind_for(0x030000, Source::dmar), ReservedKind::direct_relaxable);
    EXPECT_EQ(kind_for(0x038000, Source::dmar), ReservedKind::direct_relaxable);
    EXPECT_EQ(kind_for(0x0c0000, Source::dmar), ReservedKind::direct);
    EXPECT_EQ(kind_for(0x020000, Source::dmar), ReservedKind::direct);
    EXPECT_EQ(kind_for(0x030000, Source::ivrs), ReservedKind::direct);
}

TEST(DeviceReservedTest, WhatTableAndKernelBothSayIsThereOnceWithTheKernelsKind) {
    SourceFacts facts;
    facts.reserved = {rmrr({PciRange{}}, 0x1000)};
    HostView view;
    view.functions = {endpoint(pci_address(0, 0, 2, 0))};
    view.functions[0].group = 5;
    view.groups = {{.number = 5,
                    .reserved = {{0x1000, 0x1fff, ReservedKind::direct_relaxable},
                                 {0xfee00000, 0xfeefffff, ReservedKind::msi}}}};
    const Laid laid = lay(facts, view, {Unit{.kind = UnitKind::vt_d}});
    ASSERT_EQ(laid.devices[0].reserved.size(), 2U) << "and the MSI window of the kernel is not added again";
    EXPECT_EQ(laid.devices[0].reserved[0].kind, ReservedKind::direct_relaxable);
    EXPECT_EQ(laid.devices[0].reserved[0].origin.source, Source::dmar);
    EXPECT_EQ(laid.devices[0].reserved[1].origin.place, "group 5");
}

TEST(DeviceReservedTest, ARangeForNobodyInParticularIsForTheSourcesUnits) {
    SourceFacts facts;
    facts.reserved = {rmrr({}, 0x1000, Source::iort)};
    HostView view;
    view.functions = {endpoint(pci_address(0, 0, 2, 0))};
    const Unit of_iort{.kind = UnitKind::smmu_v3, .origins = {{Source::iort}}};
    const Unit of_tree{.kind = UnitKind::smmu_v3, .origins = {{Source::device_tree}}};
    const Laid with = lay(facts, view, {of_iort});
    ASSERT_EQ(with.devices[0].reserved.size(), 2U);
    EXPECT_EQ(with.devices[0].reserved[0].first, 0x1000U);
    EXPECT_EQ(with.devices[0].reserved[1].first, 0x8000000U) << "the MSI window that Linux makes up";
    EXPECT_EQ(lay(facts, view, {of_tree}).devices[0].reserved.size(), 1U);
}

TEST(DeviceReservedTest, TheUsersOverrideTakesTheOthersPlace) {
    SourceFacts facts;
    facts.reserved = {rmrr({PciRange{0, 0x10, 0x10}}, 0x5000, Source::user), rmrr({PciRange{}}, 0x1000)};
    facts.reserved[0].is_override = true;
    HostView view;
    view.functions = {endpoint(pci_address(0, 0, 2, 0)), endpoint(pci_address(0, 0, 3, 0))};
    const Laid laid = lay(facts, view);
    ASSERT_EQ(laid.devices[0].reserved.size(), 1U);
    EXPECT_EQ(laid.devices[0].reserved[0].first, 0x5000U);
    EXPECT_EQ(laid.devices[1].reserved.at(0).first, 0x1000U);
}

TEST(DeviceReservedTest, RangesBeyondTheLimitAreAComplaint) {
    HostView view;
    view.functions = {endpoint(pci_address(0, 0, 2, 0))};
    view.functions[0].group = 1;
    view.groups = {{.number = 1}};
    for (std::uint64_t i = 0; i < most_reserved_of_device; ++i) {
        view.groups[0].reserved.push_back({i << 12, i << 12, ReservedKind::reserved});
    }
    EXPECT_TRUE(lay({}, view).complaints.empty());
    view.groups[0].reserved.push_back({0xffff0000, 0xffff0000, ReservedKind::reserved});
    const Laid laid = lay({}, view);
    EXPECT_EQ(laid.devices[0].reserved.size(), most_reserved_of_device);
    EXPECT_EQ(laid.complaints.size(), 1U);
}

}  // namespace
}  // namespace guestmem::dma
