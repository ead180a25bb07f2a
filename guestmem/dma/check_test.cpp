// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/check.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace guestmem::dma {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

/// Two devices behind a VT-d that the kernel uses strictly.
Inventory good_machine() {
    Inventory inventory;
    inventory.units.push_back({.name = "vtd@fed90000", .kind = UnitKind::vt_d, .kernel_name = "dmar0"});
    inventory.platform.is_protected_from_start = true;
    for (std::uint16_t i = 0; i < 2; ++i) {
        const PciAddress address{0, i};
        inventory.devices.push_back({.name = to_string(address),
                                     .pci = address,
                                     .unit = 0,
                                     .protection = Protection::behind_unit,
                                     .containment = i,
                                     .is_interrupt_isolated = true});
        inventory.containments.push_back({.devices = {i}});
        inventory.kernel_groups.push_back({.number = i, .type = "DMA"});
    }
    inventory.settings.command_line = "root=/dev/sda1 intel_iommu=on quiet";
    return inventory;
}

std::vector<std::string> codes(const Inventory& inventory) {
    std::vector<std::string> codes;
    for (const Finding& finding : check(inventory)) codes.emplace_back(finding.code);
    return codes;
}

const Finding& found(const std::vector<Finding>& findings, std::string_view code) {
    static const Finding none;
    const auto at = std::ranges::find(findings, code, &Finding::code);
    return at == findings.end() ? none : *at;
}

TEST(CheckTest, AGoodMachineHasNoFinding) { EXPECT_THAT(codes(good_machine()), IsEmpty()); }

TEST(CheckTest, AnIommuThatIsOffIsSwitchedOnByTheWordThatItsKindNeeds) {
    Inventory inventory = good_machine();
    inventory.units[0].kernel_name.clear();
    inventory.settings.command_line = "quiet";
    EXPECT_THAT(found(check(inventory), "iommu-off").fix, HasSubstr("add 'intel_iommu=on'"));
    inventory.settings.command_line = "quiet intel_iommu=off";
    EXPECT_THAT(found(check(inventory), "iommu-off").fix, HasSubstr("take 'intel_iommu=off' off"));
    inventory.settings.command_line = "quiet";
    inventory.units[0].kind = UnitKind::amd_vi;
    EXPECT_THAT(found(check(inventory), "iommu-off").fix, HasSubstr("AMD_IOMMU"));
    inventory.units.clear();
    EXPECT_THAT(found(check(inventory), "iommu-off").fix, HasSubstr("firmware's setup"));
    EXPECT_EQ(found(check(inventory), "iommu-off").weight, Weight::risk);
}

TEST(CheckTest, OneOfTwoUnitsThatIsNotUsedIsARisk) {
    Inventory inventory = good_machine();
    inventory.units.push_back({.name = "vtd@fed91000", .kind = UnitKind::vt_d});
    EXPECT_THAT(codes(inventory), ElementsAre("unit-not-used"));
    EXPECT_THAT(found(check(inventory), "unit-not-used").what, HasSubstr("vtd@fed91000"));
}

TEST(CheckTest, DevicesBehindNoUnitAreNamedUpToALimit) {
    Inventory inventory = good_machine();
    for (std::uint16_t i = 2; i < 14; ++i)
        inventory.devices.push_back({.name = to_string(PciAddress{0, i}), .protection = Protection::none});
    EXPECT_THAT(codes(inventory), ElementsAre("device-outside"));
    const std::string what = found(check(inventory), "device-outside").what;
    EXPECT_THAT(what, HasSubstr("12 devices are behind no IOMMU: 0000:00:00.2"));
    EXPECT_THAT(what, HasSubstr("and 4 more"));
    for (Device& device : inventory.devices) device.is_bridge = true;
    EXPECT_THAT(codes(inventory), IsEmpty()) << "bridges do no DMA of their own";
}

TEST(CheckTest, AnIommuThatIsAPciFunctionIsNoDeviceOutside) {
    Inventory inventory = good_machine();
    const PciAddress own{0, 8};
    inventory.units.push_back(
        {.name = "amdvi", .kind = UnitKind::amd_vi, .function = own, .kernel_name = "ivhd0"});
    inventory.devices.push_back({.name = to_string(own), .pci = own, .protection = Protection::none});
    EXPECT_THAT(codes(inventory), IsEmpty());
    inventory.units.back().function = PciAddress{0, 9};
    EXPECT_THAT(codes(inventory), ElementsAre("device-outside"));
}

TEST(CheckTest, PassThroughIsARiskAndLazyInvalidationANote) {
    Inventory inventory = good_machine();
    inventory.kernel_groups[0].type = "identity";
    inventory.kernel_groups[1].type = "DMA-FQ";
    inventory.settings.command_line += " iommu=pt";
    EXPECT_THAT(codes(inventory), ElementsAre("pass-through", "lazy-invalidation"));
    EXPECT_THAT(found(check(inventory), "pass-through").fix, HasSubstr("'iommu=pt'"));
    EXPECT_EQ(found(check(inventory), "lazy-invalidation").weight, Weight::note);
    EXPECT_THAT(found(check(inventory), "lazy-invalidation").fix, HasSubstr("iommu.strict=1"));
}

TEST(CheckTest, WhatMakesInterruptsOrGroupsWeakerIsARisk) {
    Inventory inventory = good_machine();
    inventory.settings.may_use_unsafe_interrupts = true;
    inventory.settings.has_posted_no_iommu = true;
    inventory.devices[1].is_interrupt_isolated = false;
    inventory.settings.command_line += " pcie_acs_override=downstream,multifunction";
    EXPECT_THAT(codes(inventory), ElementsAre("unsafe-interrupts", "vfio-without-iommu",
                                              "interrupts-not-isolated", "acs-overridden"));
    inventory = good_machine();
    inventory.settings.command_line += " pci=noaer,disable_acs_redir=0000:00:1c.0";
    EXPECT_THAT(codes(inventory), ElementsAre("acs-overridden"));
    inventory.settings.command_line = "x=\"a pcie_acs_override=b\"";
    EXPECT_THAT(codes(inventory), IsEmpty()) << "it is inside of another word";
}

TEST(CheckTest, WhatComesFromOutsideHasToBeBehindAUnit) {
    Inventory inventory = good_machine();
    inventory.devices[0].is_external = true;
    EXPECT_THAT(codes(inventory), IsEmpty());
    inventory.devices[0].protection = Protection::unit_not_used;
    inventory.thunderbolt.push_back({.name = "domain0", .security = "none", .has_iommu_protection = false});
    EXPECT_THAT(codes(inventory), ElementsAre("device-not-grouped", "thunderbolt-open", "external-device"));
}

TEST(CheckTest, FirmwaresRangesAndItsMissingOptInAreNotes) {
    Inventory inventory = good_machine();
    inventory.devices[0].reserved = {{.first = 0, .last = 0xfff, .kind = ReservedKind::direct}};
    inventory.platform.is_protected_from_start = false;
    inventory.complaints.push_back({{Source::dmar, "offset 0x30"}, "two units at one address"});
    EXPECT_THAT(codes(inventory), ElementsAre("firmware-memory", "no-opt-in", "notes"));
    for (const Finding& finding : check(inventory)) EXPECT_EQ(finding.weight, Weight::note) << finding.code;
    inventory.devices[0].reserved[0].kind = ReservedKind::direct_relaxable;
    EXPECT_THAT(codes(inventory), ElementsAre("no-opt-in", "notes"));
}

TEST(CheckTest, ADeviceThatTheKernelHasInNoGroupIsNotProtected) {
    Inventory inventory = good_machine();
    inventory.devices[1].protection = Protection::unit_not_used;
    EXPECT_THAT(codes(inventory), ElementsAre("device-not-grouped"));
    inventory.devices[1].is_seen = false;
    EXPECT_THAT(codes(inventory), IsEmpty()) << "the kernel does not show it: it does no DMA";
}

TEST(CheckTest, WhatCouldNotBeSeenIsSaid) {
    Inventory inventory = good_machine();
    inventory.devices[1].is_interrupt_isolated.reset();
    EXPECT_THAT(codes(inventory), ElementsAre("interrupts-unknown"));
    inventory.units.clear();
    inventory.complaints.push_back({{Source::kernel, {}, {}}, "firmware tables: run as root to see them"});
    EXPECT_THAT(found(check(inventory), "iommu-off").fix, HasSubstr("as root"));
}

TEST(CheckTest, WordsOfTheCommandLineStandInForWhatCannotBeRead) {
    Inventory inventory = good_machine();
    for (KernelGroup& group : inventory.kernel_groups) group.type.clear();
    inventory.settings.command_line = "iommu=pt,nobypass";
    EXPECT_THAT(codes(inventory), ElementsAre("pass-through"));
    inventory.settings.command_line = "iommu.passthrough=0";
    EXPECT_THAT(codes(inventory), IsEmpty());
    inventory.settings.command_line = "arm-smmu-v3.disable_bypass=0";
    EXPECT_THAT(codes(inventory), ElementsAre("smmu-bypass"));
    inventory.settings.command_line = "intel_iommu=sm_on,off";
    inventory.units[0].kernel_name.clear();
    EXPECT_THAT(found(check(inventory), "iommu-off").fix, HasSubstr("take 'intel_iommu=sm_on,off' off"));
}

TEST(CheckTest, EveryFindingSaysWhatWhyAndHow) {
    Inventory inventory = good_machine();
    inventory.units[0].kernel_name.clear();
    inventory.devices[0].protection = Protection::none;
    inventory.settings.may_use_unsafe_interrupts = true;
    for (const Finding& finding : check(inventory)) {
        EXPECT_FALSE(finding.what.empty()) << finding.code;
        EXPECT_FALSE(finding.why.empty()) << finding.code;
        EXPECT_FALSE(finding.fix.empty()) << finding.code;
    }
}

}  // namespace
}  // namespace guestmem::dma
