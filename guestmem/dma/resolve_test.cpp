// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/resolve.hpp"

#include <gtest/gtest.h>

#include <random>
#include <tuple>

#include "guestmem/dma/device_place.hpp"
#include "guestmem/dma/testing/machines.hpp"

namespace guestmem::dma {
namespace {

using testing::acs;
using testing::bridge;
using testing::broken_rule;
using testing::endpoint;
using testing::names_of;
using testing::one_of_several;
using testing::virtual_function;

using Names = std::set<std::set<std::string>>;
using Ids = std::vector<std::uint32_t>;

const Device& device(const Inventory& inventory, std::string_view name) {
    static const Device nobody;
    const auto at = inventory.find_device(name);
    EXPECT_TRUE(at.has_value()) << name;
    return at ? inventory.devices[*at] : nobody;
}

std::string unit_of(const Inventory& inventory, std::string_view name) {
    const auto unit = device(inventory, name).unit;
    return unit ? inventory.units[*unit].name : "none";
}

std::vector<JoinReason> reasons_of(const Inventory& inventory, std::string_view name) {
    std::vector<JoinReason> reasons;
    for (const Join& join : inventory.containments[device(inventory, name).containment].joins) {
        reasons.push_back(join.reason);
    }
    return reasons;
}

bool has_complaint(const Inventory& inventory, std::string_view words) {
    return std::ranges::any_of(inventory.complaints, [&](const Complaint& complaint) {
        return complaint.text.find(words) != std::string::npos;
    });
}

UnitFact vt_d(std::uint64_t registers) {
    return {.name = unit_name(UnitKind::vt_d, registers),
            .kind = UnitKind::vt_d,
            .registers = registers,
            .origin = {Source::dmar, "offset 0x30"}};
}

CoverFact cover(std::string unit, Selector which, Source source = Source::dmar) {
    return {.unit = std::move(unit), .which = std::move(which), .origin = {source, "here"}};
}

/// A q35 with one VT-d unit for all, and groups as the kernel makes them.
struct Flat {
    SourceFacts facts;
    HostView view;

    Flat() {
        facts.units = {vt_d(0xfed90000)};
        facts.covers = {cover("vtd@fed90000", PciRest{})};
        facts.platform.has_interrupt_remapping = true;
        view.settings.architecture = "x86_64";
        view.units = {{.name = "dmar0", .registers = 0xfed90000, .capability = 0, .extended = 0b1000}};
        view.functions = {endpoint(pci_address(0, 0, 0, 0), PortType::conventional),
                          endpoint(pci_address(0, 0, 2, 0), PortType::conventional),
                          one_of_several(pci_address(0, 0, 0x1f, 0), PortType::conventional),
                          one_of_several(pci_address(0, 0, 0x1f, 2), PortType::conventional),
                          one_of_several(pci_address(0, 0, 0x1f, 3), PortType::conventional)};
        constexpr std::uint32_t groups[] = {0, 1, 2, 2, 2};
        for (std::size_t i = 0; i < view.functions.size(); ++i) {
            view.functions[i].group = groups[i];
            view.functions[i].kernel_unit = "dmar0";
        }
    }
};

TEST(ResolveTest, AFlatMachineHasTheGroupsOfItsKernel) {
    const Flat machine;
    const Inventory inventory = resolve(machine.facts, machine.view);
    EXPECT_EQ(names_of(inventory), (Names{{"00:00.0"}, {"00:02.0"}, {"00:1f.0", "00:1f.2", "00:1f.3"}}));
    EXPECT_EQ(reasons_of(inventory, "00:1f.0"),
              (std::vector{JoinReason::missing_acs_function, JoinReason::missing_acs_function}));
    const Device& card = device(inventory, "00:02.0");
    EXPECT_EQ(card.title, "8086:10d3 Ethernet controller");
    EXPECT_EQ(card.protection, Protection::behind_unit);
    EXPECT_EQ(card.ids, Ids{0x10});
    EXPECT_EQ(card.is_interrupt_isolated, true);
    EXPECT_EQ(card.origins.at(0).source, Source::dmar);
    ASSERT_EQ(card.reserved.size(), 1U);
    EXPECT_EQ(card.reserved[0].kind, ReservedKind::msi);
    EXPECT_TRUE(inventory.complaints.empty()) << inventory.complaints[0].text;
    EXPECT_EQ(broken_rule(inventory), "");
}

TEST(ResolveTest, AUnitThatTheKernelDoesNotUseProtectsNobody) {
    Flat machine;
    machine.view.units.clear();
    for (PciFunction& function : machine.view.functions) {
        function.group.reset();
        function.kernel_unit.clear();
    }
    const Inventory off = resolve(machine.facts, machine.view);
    EXPECT_EQ(device(off, "00:02.0").protection, Protection::unit_not_used);
    EXPECT_EQ(device(off, "00:02.0").is_interrupt_isolated, std::nullopt);
    const Inventory none = resolve({}, machine.view);
    EXPECT_EQ(device(none, "00:02.0").protection, Protection::none);
    EXPECT_EQ(device(none, "00:02.0").is_interrupt_isolated, false);
    EXPECT_EQ(names_of(none).size(), 3U);
}

TEST(ResolveTest, WithoutReadableTablesTheKernelSaysWhoIsBehindWhat) {
    const Flat machine;
    const Inventory inventory = resolve({}, machine.view);
    EXPECT_EQ(unit_of(inventory, "00:02.0"), "vtd@fed90000");
    EXPECT_EQ(device(inventory, "00:02.0").protection, Protection::behind_unit);
    EXPECT_EQ(device(inventory, "00:02.0").ids, Ids{0x10});
    EXPECT_EQ(device(inventory, "00:02.0").origins.at(0).source, Source::kernel);
    EXPECT_EQ(names_of(inventory).size(), 3U);
}

TEST(ResolveTest, AGroupWithoutAUnitProtectsNobody) {
    Flat machine;
    machine.view.functions[1].kernel_unit.clear();
    EXPECT_EQ(device(resolve(machine.facts, machine.view), "00:02.0").protection, Protection::unit_not_used);
    EXPECT_EQ(device(resolve({}, machine.view), "00:02.0").protection, Protection::none);
    machine.view.groups = {
        {.number = 1, .type = "unknown", .members = {"0000:00:02.0"}, .name = "vfio-noiommu"}};
    for (const char* unit : {"", "dmar0"}) {
        machine.view.functions[1].kernel_unit = unit;
        const Inventory inventory = resolve(machine.facts, machine.view);
        EXPECT_EQ(device(inventory, "00:02.0").protection, Protection::none) << unit;
        EXPECT_EQ(device(inventory, "00:02.0").is_interrupt_isolated, false) << unit;
        EXPECT_EQ(device(inventory, "00:00.0").protection, Protection::behind_unit);
    }
}

TEST(ResolveTest, WhatTheKernelDoesNotShowIsNotProtected) {
    SourceFacts facts;
    facts.units = {{.name = "smmuv3@1000", .kind = UnitKind::smmu_v3, .registers = 0x1000}};
    facts.covers = {cover("smmuv3@1000", PciRange{0, 8, 8}, Source::user),
                    cover("smmuv3@1000", MmioDevice{0xfe000000}, Source::user),
                    cover("smmuv3@1000", MmioDevice{0xfd000000}, Source::user)};
    HostView view;
    view.units = {{.name = "smmu3.0x0000000000001000"}};
    view.platform_devices = {{.name = "fd000000.dma", .registers = 0xfd000000}};
    const Inventory inventory = resolve(facts, view);
    for (const char* ghost : {"00:01.0", "mem:0xfe000000"}) {
        EXPECT_FALSE(device(inventory, ghost).is_seen) << ghost;
        EXPECT_EQ(device(inventory, ghost).protection, Protection::unit_not_used) << ghost;
    }
    EXPECT_TRUE(device(inventory, "fd000000.dma").is_seen);
    EXPECT_EQ(device(inventory, "fd000000.dma").protection, Protection::behind_unit);
}

TEST(ResolveTest, WhoseIdentitiesAreCutIsNotProtected) {
    SourceFacts facts;
    facts.units = {{.name = "smmuv3@1000", .kind = UnitKind::smmu_v3, .registers = 0x1000}};
    for (std::uint32_t i = 0; i <= most_ids_of_device; ++i) {
        facts.covers.push_back(cover("smmuv3@1000", MmioDevice{0xfd000000}, Source::iort));
        facts.covers.back().identity.first_id = i;
    }
    facts.covers.push_back(cover("smmuv3@1000", MmioDevice{0xfc000000}, Source::iort));
    facts.covers.back().identity.first_id = most_ids_of_device;
    HostView view;
    view.units = {{.name = "smmu3.0x0000000000001000"}};
    view.platform_devices = {{.name = "fc000000.dma", .registers = 0xfc000000},
                             {.name = "fd000000.dma", .registers = 0xfd000000}};
    const Inventory inventory = resolve(facts, view);
    EXPECT_EQ(device(inventory, "fd000000.dma").protection, Protection::unit_not_used);
    EXPECT_EQ(device(inventory, "fc000000.dma").protection, Protection::behind_unit);
    EXPECT_TRUE(has_complaint(inventory, "fd000000.dma: more than 512"));
}

TEST(ResolveTest, OnlyANodeOfItsKindIsAnInterruptController) {
    SourceFacts facts;
    facts.units = {{.name = "smmuv3@1000", .kind = UnitKind::smmu_v3, .registers = 0x1000}};
    facts.covers = {cover("smmuv3@1000", PciRange{0, 0, 0xff}, Source::device_tree)};
    facts.covers[0].identity.first_id = 0;
    HostView view;
    view.settings.architecture = "aarch64";
    view.units = {{.name = "smmu3.0x0000000000001000"}};
    view.functions = {endpoint(pci_address(0, 0, 1, 0))};
    const auto isolation_with = [&](std::vector<PlatformDevice> devices) {
        view.platform_devices = std::move(devices);
        return device(resolve(facts, view), "00:01.0").is_interrupt_isolated;
    };
    const PlatformDevice its{.name = "8080000.its", .firmware_node = "/intc@8000000/its@8080000"};
    const PlatformDevice gicv2m{.name = "8020000.v2m", .firmware_node = "/intc@8000000/v2m@8020000"};
    EXPECT_EQ(isolation_with({{.name = "x", .firmware_node = "/soc/bits@9000000"}}), std::nullopt);
    EXPECT_EQ(isolation_with({{.name = "9000000.bits"}}), std::nullopt);
    EXPECT_EQ(isolation_with({{.name = "x", .firmware_node = "/its@8080000/dma@1"}}), std::nullopt);
    EXPECT_EQ(isolation_with({{.name = "x", .firmware_node = "/soc/msi-controller@1"}}), true);
    EXPECT_EQ(isolation_with({its}), true);
    EXPECT_EQ(isolation_with({gicv2m}), false);
    EXPECT_EQ(isolation_with({its, gicv2m}), std::nullopt);
}

TEST(ResolveTest, AFunctionBehindVmdIsProtectedByTheKernelsUnitAndGroupOnly) {
    Flat machine;
    PlatformDevice drive{.name = "10000:01:00.0"};
    drive.is_pci = true;
    const auto protection_with = [&](const char* unit, std::optional<std::uint32_t> group) {
        drive.kernel_unit = unit;
        drive.group = group;
        machine.view.platform_devices = {drive};
        return device(resolve(machine.facts, machine.view), "10000:01:00.0").protection;
    };
    EXPECT_EQ(protection_with("", std::nullopt), Protection::none);
    EXPECT_EQ(protection_with("", 9), Protection::none);
    EXPECT_EQ(protection_with("dmar0", std::nullopt), Protection::unit_not_used);
    EXPECT_EQ(protection_with("dmar0", 9), Protection::behind_unit);
}

TEST(ResolveTest, WhereNothingOfPortsCouldBeReadTheKernelsGroupsStand) {
    HostView view;
    view.functions = {bridge(pci_address(0, 0, 1, 0), PortType::conventional, 1, 1),
                      bridge(pci_address(0, 0, 1, 1), PortType::conventional, 2, 2),
                      endpoint(pci_address(0, 1, 0, 0), PortType::conventional),
                      endpoint(pci_address(0, 2, 0, 0), PortType::conventional)};
    constexpr std::uint32_t groups[] = {1, 1, 2, 3};
    for (std::size_t i = 0; i < 4; ++i) {
        view.functions[i].access_control.reset();
        view.functions[i].group = groups[i];
    }
    EXPECT_EQ(names_of(resolve({}, view)), (Names{{"00:01.0", "00:01.1"}, {"01:00.0"}, {"02:00.0"}}));
    for (PciFunction& function : view.functions) {
        function.group.reset();
    }
    const Inventory unknown = resolve({}, view);
    EXPECT_EQ(names_of(unknown), (Names{{"00:01.0", "00:01.1", "01:00.0", "02:00.0"}}));
}

TEST(ResolveTest, TwoVtdUnitsShareASegmentByScopesAndRest) {
    SourceFacts facts;
    facts.units = {vt_d(0x1000), vt_d(0x2000)};
    // The unit for the rest comes first here: what is named is tried before it all the same.
    facts.covers = {cover("vtd@2000", PciPath{.hops = {{2, 0}}}),
                    cover("vtd@2000", PciPath{.hops = {{1, 0}}, .is_bridge = true}),
                    cover("vtd@1000", PciRest{})};
    HostView view;
    view.functions = {bridge(pci_address(0, 0, 1, 0), PortType::root_port, 1, 1, acs(true)),
                      endpoint(pci_address(0, 0, 2, 0)),
                      endpoint(pci_address(0, 0, 3, 0)),
                      endpoint(pci_address(0, 1, 0, 0)),
                      virtual_function(pci_address(0, 1, 2, 0), pci_address(0, 1, 0, 0)),
                      virtual_function(pci_address(0, 5, 0, 0), pci_address(0, 0, 2, 0)),
                      endpoint(pci_address(1, 0, 0, 0))};
    const Inventory inventory = resolve(facts, view);
    EXPECT_EQ(unit_of(inventory, "00:01.0"), "vtd@2000");
    EXPECT_EQ(unit_of(inventory, "00:02.0"), "vtd@2000");
    EXPECT_EQ(unit_of(inventory, "00:03.0"), "vtd@1000");
    EXPECT_EQ(unit_of(inventory, "01:00.0"), "vtd@2000");
    EXPECT_EQ(unit_of(inventory, "01:02.0"), "vtd@2000");
    EXPECT_EQ(unit_of(inventory, "05:00.0"), "vtd@2000") << "a virtual function is where its physical one is";
    EXPECT_EQ(device(inventory, "05:00.0").ids, Ids{0x500}) << "with an id of its own";
    EXPECT_EQ(unit_of(inventory, "0001:00:00.0"), "none");
}

TEST(ResolveTest, DevicesBelowAPciBridgeCarryItsIdAndBelongTogether) {
    Flat machine;
    machine.view.functions = {bridge(pci_address(0, 0, 0x1e, 0), PortType::root_port, 1, 3, acs(true)),
                              bridge(pci_address(0, 1, 0, 0), PortType::express_to_pci_bridge, 2, 3),
                              endpoint(pci_address(0, 2, 1, 0), PortType::conventional),
                              bridge(pci_address(0, 2, 2, 0), PortType::conventional, 3, 3),
                              endpoint(pci_address(0, 3, 0, 0), PortType::conventional)};
    const Inventory inventory = resolve(machine.facts, machine.view);
    EXPECT_EQ(names_of(inventory), (Names{{"00:1e.0"}, {"01:00.0", "02:01.0", "02:02.0", "03:00.0"}}));
    for (const JoinReason reason : reasons_of(inventory, "02:01.0")) {
        EXPECT_EQ(reason, JoinReason::conventional_bridge);
    }
    EXPECT_EQ(device(inventory, "02:01.0").ids, (Ids{0x200, 0x208}));
    EXPECT_EQ(device(inventory, "03:00.0").ids, (Ids{0x200, 0x210, 0x300}));
    EXPECT_EQ(device(inventory, "01:00.0").ids, Ids{0x100});
    EXPECT_TRUE(device(inventory, "02:02.0").is_bridge);
}

TEST(ResolveTest, AmdsAliasesJoinAndTheUnitsFunctionIsNotBehindItself) {
    SourceFacts facts;
    const std::string unit = "amdvi@0000:00:00.2";
    facts.units = {{.name = unit,
                    .kind = UnitKind::amd_vi,
                    .registers = 0xfeb80000,
                    .function = pci_address(0, 0, 0, 2),
                    .origin = {Source::ivrs}}};
    facts.covers = {cover(unit, PciRange{0, 0x20, 0x20}, Source::ivrs),
                    cover(unit, PciRange{}, Source::ivrs)};
    facts.covers[0].identity = {.first_id = 0x28, .is_shared = true};
    HostView view;
    view.settings.architecture = "x86_64";
    view.units = {{.name = "ivhd0", .function = pci_address(0, 0, 0, 2), .extended = 0}};
    view.functions = {endpoint(pci_address(0, 0, 0, 0), PortType::conventional),
                      endpoint(pci_address(0, 0, 0, 2), PortType::conventional),
                      endpoint(pci_address(0, 0, 4, 0)), endpoint(pci_address(0, 0, 5, 0)),
                      endpoint(pci_address(0, 0, 6, 0))};
    const Inventory inventory = resolve(facts, view);
    EXPECT_EQ(names_of(inventory), (Names{{"00:00.0"}, {"00:00.2"}, {"00:04.0", "00:05.0"}, {"00:06.0"}}))
        << "an IOMMU is no sibling of the host bridge";
    EXPECT_EQ(reasons_of(inventory, "00:04.0"), std::vector{JoinReason::alias});
    EXPECT_EQ(unit_of(inventory, "00:00.2"), "none");
    EXPECT_EQ(device(inventory, "00:06.0").protection, Protection::unit_not_used)
        << "AMD-Vi makes groups at boot: none here";
    ASSERT_EQ(device(inventory, "00:06.0").reserved.size(), 2U) << "MSI and HyperTransport";
}

TEST(ResolveTest, SmmuStreamsFollowTheMapAndHolesAreUnprotected) {
    SourceFacts facts;
    facts.units = {{.name = "smmuv3@9050000", .kind = UnitKind::smmu_v3, .registers = 0x9050000}};
    facts.covers = {cover("smmuv3@9050000", PciRange{0, 0, 0xff}, Source::iort),
                    cover("smmuv3@9050000", PciRange{0, 0x200, 0x2ff}, Source::iort)};
    facts.covers[0].identity.first_id = 0x1000;
    facts.covers[1].identity = {.first_id = 0x40, .rid_mask = 0xfff8};
    HostView view;
    view.settings.architecture = "aarch64";
    view.units = {{.name = "smmu3.0x0000000009050000"}};
    view.platform_devices = {{.name = "8080000.its"}};
    view.functions = {endpoint(pci_address(0, 0, 1, 0)), endpoint(pci_address(0, 1, 0, 0)),
                      endpoint(pci_address(0, 2, 0, 0)), endpoint(pci_address(0, 2, 0, 3))};
    view.functions[2].access_control = view.functions[3].access_control = acs(true);
    view.functions[2].is_multifunction = true;
    const Inventory inventory = resolve(facts, view);
    EXPECT_EQ(device(inventory, "00:01.0").ids, Ids{0x1008});
    EXPECT_EQ(device(inventory, "00:01.0").protection, Protection::behind_unit)
        << "its group comes with a driver";
    EXPECT_EQ(device(inventory, "00:01.0").is_interrupt_isolated, true);
    EXPECT_EQ(device(inventory, "01:00.0").protection, Protection::none);
    EXPECT_EQ(device(inventory, "02:00.3").ids, Ids{0x40});
    EXPECT_EQ(names_of(inventory), (Names{{"00:01.0"}, {"01:00.0"}, {"02:00.0", "02:00.3"}}));
    EXPECT_EQ(reasons_of(inventory, "02:00.0"), std::vector{JoinReason::shared_identity});
    view.functions[0].driver = "nvme";
    EXPECT_EQ(device(resolve(facts, view), "00:01.0").protection, Protection::unit_not_used)
        << "a driver without a group has the device outside of the unit";
}

TEST(ResolveTest, AVirtualFunctionOfASmmuHasNoUnitThroughItsPhysicalOne) {
    SourceFacts facts;
    facts.units = {{.name = "smmuv3@1000", .kind = UnitKind::smmu_v3, .registers = 0x1000}};
    facts.covers = {cover("smmuv3@1000", PciRange{0, 0, 0xff}, Source::iort)};
    facts.covers[0].identity.first_id = 0;
    HostView view;
    view.functions = {endpoint(pci_address(0, 0, 1, 0)),
                      virtual_function(pci_address(0, 1, 0, 0), pci_address(0, 0, 1, 0))};
    EXPECT_EQ(unit_of(resolve(facts, view), "01:00.0"), "none");
}

TEST(ResolveTest, PlatformDevicesOfADeviceTreeShareAStream) {
    SourceFacts facts;
    facts.units = {{.name = "smmuv2@5000", .kind = UnitKind::smmu_v2, .registers = 0x5000}};
    for (const char* path : {"/soc/dma@1000", "/soc/dma@2000", "/soc/usb@3000"}) {
        facts.covers.push_back(cover("smmuv2@5000", NamedDevice{path}, Source::device_tree));
        facts.covers.back().identity.first_id = 0x10;
    }
    facts.covers[2].identity.first_id = 0x11;
    facts.covers.push_back(facts.covers[2]);
    facts.covers.back().identity.first_id = 0x20;
    HostView view;
    view.platform_devices = {{.name = "1000.dma", .firmware_node = "/soc/dma@1000", .registers = 0x1000},
                             {.name = "2000.dma", .firmware_node = "/soc/dma@2000"},
                             {.name = "serial", .firmware_node = "/soc/serial"}};
    const Inventory inventory = resolve(facts, view);
    EXPECT_EQ(names_of(inventory), (Names{{"1000.dma", "2000.dma"}, {"/soc/usb@3000"}}));
    EXPECT_EQ(device(inventory, "/soc/usb@3000").ids, (Ids{0x11, 0x20}));
    EXPECT_EQ(device(inventory, "mem:0x1000").name, "1000.dma");
    EXPECT_EQ(device(inventory, "1000.dma").protection, Protection::unit_not_used);
}

TEST(ResolveTest, TheUsersWordStandsAgainstTheKernelsAndFirmwaresDoesNot) {
    Flat machine;
    machine.facts.units.push_back(vt_d(0x2000));
    machine.facts.covers = {cover("vtd@2000", PciPath{.hops = {{2, 0}}})};
    const Inventory firmware = resolve(machine.facts, machine.view);
    EXPECT_EQ(unit_of(firmware, "00:02.0"), "vtd@fed90000");
    EXPECT_EQ(device(firmware, "00:02.0").protection, Protection::behind_unit);
    EXPECT_TRUE(has_complaint(firmware, "0000:00:02.0 is behind vtd@fed90000 for the kernel"));

    machine.facts.covers = {cover("vtd@2000", PciRange{0, 0x10, 0x10}, Source::user)};
    machine.facts.covers[0].is_override = true;
    const Inventory user = resolve(machine.facts, machine.view);
    EXPECT_EQ(unit_of(user, "00:02.0"), "vtd@2000");
    EXPECT_EQ(device(user, "00:02.0").protection, Protection::unit_not_used)
        << "the kernel programs a unit that the device does not pass";
    EXPECT_TRUE(has_complaint(user, "the user is believed"));
}

TEST(ResolveTest, OnX86AVirtioIommuDoesNotIsolateInterrupts) {
    SourceFacts facts;
    const PciAddress iommu = pci_address(0, 0, 2, 0);
    const std::string unit = unit_name(UnitKind::virtio_iommu, iommu);
    facts.units = {{.name = unit, .kind = UnitKind::virtio_iommu, .function = iommu}};
    facts.covers = {cover(unit, PciRange{0, 0, 0xff}, Source::viot)};
    facts.covers[0].identity.first_id = 0;
    HostView view;
    view.settings.architecture = "x86_64";
    view.units = {{.name = "virtio0", .function = iommu}};
    view.functions = {endpoint(iommu, PortType::conventional), endpoint(pci_address(0, 0, 3, 0))};
    const Inventory inventory = resolve(facts, view);
    EXPECT_EQ(unit_of(inventory, "00:02.0"), "none");
    EXPECT_EQ(device(inventory, "00:03.0").protection, Protection::behind_unit);
    EXPECT_EQ(device(inventory, "00:03.0").is_interrupt_isolated, false);
}

TEST(ResolveTest, AGroupThatNothingExplainsIsJoinedAndComplainedOf) {
    Flat machine;
    machine.view.functions[1].group = 0;
    machine.view.groups = {{.number = 2, .members = {"0000:00:1f.0", "lost.device"}}};
    const Inventory inventory = resolve(machine.facts, machine.view);
    EXPECT_EQ(reasons_of(inventory, "00:02.0"), std::vector{JoinReason::kernel_group});
    EXPECT_TRUE(has_complaint(inventory, "in group 0, for a reason that is not seen from here"));
    EXPECT_EQ(device(inventory, "lost.device").containment, device(inventory, "00:1f.0").containment);
    EXPECT_EQ(broken_rule(inventory), "");
}

TEST(ResolveTest, ASeparationWithoutAcsIsBelievedAndMarked) {
    HostView view;
    view.functions = {bridge(pci_address(0, 0, 1, 0), PortType::root_port, 1, 1),
                      endpoint(pci_address(0, 1, 0, 0))};
    view.functions[0].group = 1;
    view.functions[1].group = 2;
    const Inventory quirk = resolve({}, view);
    EXPECT_EQ(names_of(quirk).size(), 2U);
    ASSERT_EQ(quirk.unproven_separations.size(), 1U);
    EXPECT_EQ(quirk.unproven_separations[0].port, pci_address(0, 0, 1, 0));
    EXPECT_FALSE(quirk.unproven_separations[0].is_overridden);
    EXPECT_TRUE(has_complaint(quirk, "separates what is at 0000:00:01.0 without ACS"));
    view.settings.command_line = "quiet pcie_acs_override=downstream,multifunction";
    EXPECT_TRUE(resolve({}, view).unproven_separations.at(0).is_overridden);
}

TEST(ResolveTest, AContainmentInSeveralGroupsIsAComplaint) {
    HostView view;
    view.functions = {bridge(pci_address(0, 0, 1, 0), PortType::express_to_pci_bridge, 1, 1),
                      endpoint(pci_address(0, 1, 0, 0), PortType::conventional)};
    view.functions[0].group = 1;
    view.functions[1].group = 2;
    const Inventory inventory = resolve({}, view);
    EXPECT_EQ(inventory.containments.at(0).kernel_groups, (std::vector<std::uint32_t>{1, 2}));
    EXPECT_TRUE(has_complaint(inventory, "in 2 groups"));
}

TEST(ResolveTest, WhatIsBelowAPortToTheOutsideIsExternal) {
    HostView view;
    view.functions = {bridge(pci_address(0, 0, 1, 0), PortType::root_port, 1, 2, acs(true)),
                      bridge(pci_address(0, 1, 0, 0), PortType::upstream_port, 2, 2),
                      endpoint(pci_address(0, 2, 0, 0)), endpoint(pci_address(0, 9, 0, 0))};
    view.functions[0].is_external_facing = true;
    view.functions[3].is_removable = true;
    const Inventory inventory = resolve({}, view);
    EXPECT_FALSE(device(inventory, "00:01.0").is_external) << "the port itself is inside";
    EXPECT_TRUE(device(inventory, "02:00.0").is_external);
    EXPECT_TRUE(device(inventory, "09:00.0").is_external);
}

TEST(ResolveTest, ACoverOfAUnitThatNobodyDescribesCountsForNothing) {
    Flat machine;
    machine.facts.covers.insert(machine.facts.covers.begin(), cover("ghost", PciPath{.hops = {{2, 0}}}));
    const Inventory inventory = resolve(machine.facts, machine.view);
    EXPECT_EQ(unit_of(inventory, "00:02.0"), "vtd@fed90000");
    EXPECT_TRUE(has_complaint(inventory, "'ghost'"));
}

/// Anything that a reader could hand over, by chance: bus numbers that loop, groups that contradict, wrong names.
class Chaos {
public:
    explicit Chaos(unsigned seed) : random_(seed) {
        for (unsigned i = 0; i < 40; ++i) {
            view_.functions.push_back(function());
        }
        for (unsigned i = 0; i < 8; ++i) {
            PlatformDevice device{.name = platform_name(), .firmware_node = platform_name()};
            device.registers = below(4);
            device.group = some_group();
            device.kernel_unit = unit_name();
            view_.platform_devices.push_back(device);
        }
        for (unsigned i = 0; i < 6; ++i) {
            KernelGroup group{.number = below(6)};
            for (unsigned member = below(4); member > 0; --member) {
                group.members.push_back(below(2) == 0 ? platform_name() : to_string(address()));
            }
            view_.groups.push_back(group);
        }
        for (unsigned i = 0; i < 4; ++i) {
            view_.units.push_back({.name = unit_name(), .registers = below(3), .function = address()});
            facts_.units.push_back({.name = unit_name(),
                                    .kind = static_cast<UnitKind>(below(6)),
                                    .registers = below(3),
                                    .function = address()});
        }
        for (unsigned i = 0; i < 20; ++i) {
            CoverFact fact = cover(unit_name(), selector(), static_cast<Source>(below(7)));
            if (below(2) == 0) {
                fact.identity.first_id = below(20);
            }
            fact.identity.is_shared = below(3) == 0;
            fact.identity.rid_mask = static_cast<std::uint16_t>(below(3) == 0 ? random_() : 0xffff);
            fact.identity.ignored_bits = below(4) == 0 ? below(16) : 0;
            fact.is_override = below(8) == 0;
            facts_.covers.push_back(fact);
            facts_.reserved.push_back({.who = {selector()}, .first = below(100), .last = below(100)});
        }
    }
    [[nodiscard]] Inventory resolved() const { return resolve(facts_, view_); }

private:
    unsigned below(unsigned limit) { return static_cast<unsigned>(random_() % limit); }
    std::uint8_t small(unsigned limit) { return static_cast<std::uint8_t>(below(limit)); }
    PciAddress address() {
        return pci_address(static_cast<std::uint16_t>(below(2)), small(6), small(3), small(3));
    }
    std::string platform_name() { return std::string("p") + static_cast<char>('0' + below(6)); }
    std::string unit_name() {
        constexpr const char* names[] = {"", "dmar0", "ivhd0", "smmu3.0x1", "smmu.0x2", "virtio0", "u"};
        return names[below(7)];
    }
    std::optional<std::uint32_t> some_group() {
        return below(3) == 0 ? std::nullopt : std::optional<std::uint32_t>(below(8));
    }

    PciFunction function() {
        PciFunction made = below(2) == 0
                               ? endpoint(address(), static_cast<PortType>(below(10)))
                               : bridge(address(), static_cast<PortType>(below(10)), small(6), small(6));
        if (below(3) == 0) {
            made.access_control.reset();
        } else if (below(2) == 0) {
            made.access_control = acs(below(2) == 0);
        }
        made.is_multifunction = below(2) == 0;
        if (below(6) == 0) {
            made.physical_function = address();
        }
        made.group = some_group();
        made.kernel_unit = unit_name();
        made.firmware_node = platform_name();
        made.first_register = below(4);
        return made;
    }

    Selector selector() {
        const auto rid = [this] { return address().rid; };
        switch (below(6)) {
            case 0: return PciRange{static_cast<std::uint16_t>(below(2)), rid(), rid()};
            case 1: {
                PciPath path{.start_bus = small(6), .is_bridge = below(2) == 0};
                for (unsigned hops = below(4); hops > 0; --hops) {
                    path.hops.push_back({small(3), small(3)});
                }
                return path;
            }
            case 2: return PciRest{static_cast<std::uint16_t>(below(2))};
            case 3: return MmioDevice{below(5)};
            case 4: return NamedDevice{platform_name()};
            default: return InterruptSender{};
        }
    }

    std::mt19937 random_;
    SourceFacts facts_;
    HostView view_;
};

TEST(ResolveTest, NoInputSplitsAKernelGroupOrLosesADevice) {
    for (unsigned seed = 0; seed < 1500; ++seed) {
        const Inventory inventory = Chaos(seed).resolved();
        ASSERT_EQ(broken_rule(inventory), "") << "seed " << seed;
        const auto place = [](const Device& each) {
            return std::tuple(!each.pci, each.pci.value_or(PciAddress{}), each.pci ? "" : each.name);
        };
        ASSERT_TRUE(std::ranges::is_sorted(inventory.devices, {}, place)) << "seed " << seed;
        for (const Device& each : inventory.devices) {
            ASSERT_TRUE(std::ranges::is_sorted(each.ids)) << "seed " << seed;
            ASSERT_EQ(std::ranges::adjacent_find(each.ids), each.ids.end()) << "seed " << seed;
            ASSERT_TRUE(!each.unit || *each.unit < inventory.units.size()) << "seed " << seed;
            ASSERT_EQ(each.protection == Protection::none, !each.unit) << "seed " << seed;
            ASSERT_NE(inventory.find_device(each.name), std::nullopt) << "seed " << seed;
        }
    }
}

TEST(ResolveTest, NothingIsAnInventoryOfNothing) {
    const Inventory inventory = resolve({}, {});
    EXPECT_TRUE(inventory.devices.empty());
    EXPECT_TRUE(inventory.containments.empty());
    EXPECT_TRUE(inventory.complaints.empty());
}

}  // namespace
}  // namespace guestmem::dma
