// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/sysfs.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <string>
#include <utility>

#include "guestmem/dma/discover/capture.hpp"
#include "guestmem/dma/discover/testing/machine_tree.hpp"
#include "guestmem/sys/faults.hpp"

namespace guestmem::dma {
namespace {

using testing::ConfigSpace;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::MachineTree;

/// The same machine as a folder, and captured.
class SysfsTest : public ::testing::TestWithParam<bool> {
protected:
    HostView view() {
        auto tree = open_host_tree(machine_.path()).value();
        if (GetParam()) tree = host_tree_of(TarArchive::read(capture(*tree).value().archive).value());
        auto view = read_host_view(*tree);
        EXPECT_TRUE(view) << view.error().message();
        return std::move(view).value();
    }
    std::string device(const std::string& name) { return MachineTree::device(name); }

    MachineTree machine_;
};

INSTANTIATE_TEST_SUITE_P(Forms, SysfsTest, ::testing::Bool(),
                         [](const auto& one) { return one.param ? "Captured" : "Folder"; });

TEST_P(SysfsTest, AFunctionHasAllThatTheKernelSaysOfIt) {
    machine_.add_function("0000:00:02.0", ConfigSpace{}.express(0x40, 0).put32(0x08, 0x02000001).text());
    machine_.set_driver("0000:00:02.0", "e1000e");
    machine_.set_group("0000:00:02.0", 7);
    machine_.add_unit("dmar0", "fed90000");
    machine_.set_unit("0000:00:02.0", "dmar0");
    machine_.put("sys/devices/acpi/device:01/path", "\\_SB_.PCI0.GFX0\n");
    machine_.link(device("0000:00:02.0") + "/firmware_node", "../../acpi/device:01");
    const HostView found = view();
    EXPECT_THAT(found.complaints, IsEmpty());
    ASSERT_EQ(found.functions.size(), 1U);
    const PciFunction& function = found.functions[0];
    EXPECT_EQ(to_string(function.address), "0000:00:02.0");
    EXPECT_EQ(function.vendor, 0x8086);
    EXPECT_EQ(function.class_code, 0x020000U);
    EXPECT_EQ(function.driver, "e1000e");
    EXPECT_EQ(function.group, 7U);
    EXPECT_EQ(function.kernel_unit, "dmar0");
    EXPECT_EQ(function.firmware_node, "\\_SB_.PCI0.GFX0");
    EXPECT_EQ(function.port, PortType::endpoint);
    EXPECT_FALSE(function.is_removable);
    EXPECT_EQ(function.physical_function, std::nullopt);
    EXPECT_EQ(found.find(function.address), &function);
}

TEST_P(SysfsTest, AVirtualFunctionHasItsNumbersFromTheKernel) {
    machine_.add_function("0000:00:03.0", ConfigSpace{}.text());
    machine_.add_function("0000:00:03.1", ConfigSpace{}.put32(0, 0xffff'ffff).express(0x40, 0).text());
    machine_.link(device("0000:00:03.1") + "/physfn", "../0000:00:03.0");
    const HostView found = view();
    ASSERT_EQ(found.functions.size(), 2U);
    const PciFunction& function = found.functions[1];
    EXPECT_EQ(function.physical_function, parse_pci_address("0000:00:03.0"));
    EXPECT_EQ(function.vendor, 0x8086);
    EXPECT_EQ(function.device, 0x10ed);
    EXPECT_EQ(function.first_register, 0xfeb80000U);
    EXPECT_EQ(found.functions[0].first_register, std::nullopt);
}

TEST_P(SysfsTest, APortWithRemovableDevicesBehindItFacesOutside) {
    const auto bridge = [](unsigned bus) {
        return ConfigSpace{}.put8(0x0e, 1).put8(0x19, bus).put8(0x1a, 9).express(0x40, 4).text();
    };
    machine_.add_function("0000:00:1c.0", bridge(5));
    machine_.add_function("0000:00:1d.0", bridge(7));
    machine_.add_function("0000:05:00.0", bridge(6));
    machine_.add_function("0000:06:00.0", ConfigSpace{}.text());
    machine_.add_function("0000:07:00.0", ConfigSpace{}.text());
    machine_.put(device("0000:05:00.0") + "/removable", "removable\n");
    machine_.put(device("0000:06:00.0") + "/removable", "removable\n");
    machine_.put(device("0000:07:00.0") + "/removable", "fixed\n");
    const HostView found = view();
    ASSERT_EQ(found.functions.size(), 5U);
    EXPECT_TRUE(found.functions[0].is_external_facing);
    EXPECT_FALSE(found.functions[1].is_external_facing);
    EXPECT_TRUE(found.functions[2].is_removable);
    EXPECT_FALSE(found.functions[2].is_external_facing) << "it is outside itself";
    EXPECT_FALSE(found.functions[4].is_removable);
}

TEST_P(SysfsTest, GroupsHaveTypeMembersAndReservedRegions) {
    machine_.add_function("0000:00:02.0", ConfigSpace{}.text());
    machine_.add_function("0000:00:02.1", ConfigSpace{}.text());
    machine_.set_group("0000:00:02.0", 10, "identity\n");
    machine_.set_group("0000:00:02.1", 9);
    machine_.put("sys/kernel/iommu_groups/9/reserved_regions", "");
    machine_.put("sys/kernel/iommu_groups/11/type", "unknown\n");
    machine_.put("sys/kernel/iommu_groups/11/name", "vfio-noiommu\n");
    const HostView found = view();
    ASSERT_EQ(found.groups.size(), 3U);
    EXPECT_EQ(found.groups[2].name, "vfio-noiommu");
    EXPECT_EQ(found.groups[1].name, "");
    EXPECT_EQ(found.groups[0].number, 9U);
    EXPECT_THAT(found.groups[0].reserved, IsEmpty());
    EXPECT_EQ(found.groups[1].number, 10U);
    EXPECT_EQ(found.groups[1].type, "identity");
    EXPECT_THAT(found.groups[1].members, ElementsAre("0000:00:02.0"));
    ASSERT_EQ(found.groups[1].reserved.size(), 1U);
    EXPECT_EQ(found.groups[1].reserved[0].kind, ReservedKind::msi);
}

TEST_P(SysfsTest, UnitsOfEachKindAreJoinedToTheirPlace) {
    machine_.add_unit("dmar0", "fed90000");
    machine_.put("sys/class/iommu/ivhd0/amd-iommu/cap", "40f\n");
    machine_.put("sys/class/iommu/ivhd0/amd-iommu/features", "f77ef22294ada\n");
    machine_.link("sys/class/iommu/ivhd0/device", "../../../0000:00:00.2");
    machine_.link("sys/class/iommu/smmu3.0x0000000009050000/device", "../../../arm-smmu-v3.0.auto");
    machine_.link("sys/class/iommu/0000:00:05.0/device", "../../../virtio0");
    const HostView found = view();
    ASSERT_EQ(found.units.size(), 4U);
    EXPECT_EQ(found.units[0].function, parse_pci_address("0000:00:05.0"));
    EXPECT_EQ(found.units[1].name, "dmar0");
    EXPECT_EQ(found.units[1].registers, 0xfed90000U);
    EXPECT_EQ(found.units[1].capability, 0xd2008c40660462U);
    EXPECT_EQ(found.units[1].extended, 0xf050daU);
    EXPECT_EQ(found.units[2].function, parse_pci_address("0000:00:00.2"));
    EXPECT_EQ(found.units[2].capability, 0x40fU);
    EXPECT_EQ(found.units[2].extended, 0xf77ef22294adaU);
    EXPECT_EQ(found.units[3].registers, 0x9050000U);
    EXPECT_EQ(found.units[3].capability, std::nullopt);
}

TEST_P(SysfsTest, PlatformDevicesAreThoseWithAGroupAUnitOrAName) {
    machine_.link("sys/bus/platform/devices/9000000.dma/of_node",
                  "../../firmware/devicetree/base/dma@9000000");
    machine_.link("sys/bus/platform/devices/9000000.dma/driver", "../../../bus/platform/drivers/pl330");
    machine_.link("sys/bus/platform/devices/AMDI0020:00/iommu_group", "../../kernel/iommu_groups/4");
    machine_.link("sys/bus/platform/devices/pcspkr/driver", "../../../bus/platform/drivers/pcspkr");
    machine_.link("sys/bus/amba/devices/a000000.dma/iommu", "../../smmu3.0x1000");
    const HostView found = view();
    ASSERT_EQ(found.platform_devices.size(), 3U);
    EXPECT_EQ(found.platform_devices[0].name, "9000000.dma");
    EXPECT_EQ(found.platform_devices[0].registers, 0x9000000U);
    EXPECT_EQ(found.platform_devices[0].firmware_node, "/dma@9000000");
    EXPECT_EQ(found.platform_devices[0].driver, "pl330");
    EXPECT_EQ(found.platform_devices[1].group, 4U);
    EXPECT_EQ(found.platform_devices[1].registers, std::nullopt);
    EXPECT_EQ(found.platform_devices[2].kernel_unit, "smmu3.0x1000");
}

TEST_P(SysfsTest, SettingsComeFromTheMachineThatWasCaptured) {
    machine_.put("proc/sys/kernel/osrelease", "6.1.0-32-amd64\n");
    machine_.put("proc/sys/kernel/arch", "aarch64\n");
    machine_.put("proc/cmdline", "root=/dev/sda1 intel_iommu=on quiet iommu=pt\n");
    machine_.put("proc/meminfo", "MemTotal:   2048 kB\n");
    machine_.put("capture/page_bytes", "65536\n");
    machine_.put("sys/module/vfio/initstate", "live\n");
    machine_.put("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n");
    machine_.put("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "N\n");
    machine_.put("sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "65535\n");
    machine_.put("sys/bus/thunderbolt/devices/domain0/security", "user\n");
    machine_.put("sys/bus/thunderbolt/devices/domain0/iommu_dma_protection", "1\n");
    machine_.put("sys/bus/thunderbolt/devices/0-0/unique_id", "1234\n");
    const HostView found = view();
    EXPECT_EQ(found.settings.release, "6.1.0-32-amd64");
    EXPECT_EQ(found.settings.architecture, "aarch64");
    EXPECT_EQ(found.settings.command_line, "intel_iommu=on iommu=pt");
    EXPECT_EQ(found.settings.memory_total_bytes, 2048U * 1024);
    EXPECT_EQ(found.settings.page_bytes, 65536U);
    EXPECT_EQ(found.settings.has_vfio, true);
    EXPECT_EQ(found.settings.has_iommufd, false);
    EXPECT_TRUE(found.settings.has_posted_no_iommu);
    EXPECT_EQ(found.settings.may_use_unsafe_interrupts, false);
    EXPECT_EQ(found.settings.dma_entry_limit, 65535U);
    EXPECT_EQ(found.settings.memory_lock_bytes, std::nullopt);
    ASSERT_EQ(found.thunderbolt.size(), 1U);
    EXPECT_EQ(found.thunderbolt[0].name, "domain0");
    EXPECT_EQ(found.thunderbolt[0].has_iommu_protection, true);
}

TEST_P(SysfsTest, WhatIsMissingIsEmptyAndNoComplaint) {
    machine_.put("proc/cmdline", "quiet\n");
    const HostView found = view();
    EXPECT_THAT(found.functions, IsEmpty());
    EXPECT_THAT(found.complaints, IsEmpty());
    EXPECT_EQ(found.settings.has_vfio, std::nullopt);
    EXPECT_EQ(found.settings.dma_entry_limit, std::nullopt);
    EXPECT_EQ(found.settings.page_bytes, 4096U);
}

TEST_P(SysfsTest, WhatOnlyRootCouldReadIsOneComplaint) {
    for (const char* address : {"0000:00:01.0", "0000:00:02.0", "0000:00:03.0"}) {
        ConfigSpace space;
        space.express(0x40, 0);
        space.bytes().resize(64);
        machine_.add_function(address, space.text());
    }
    const HostView found = view();
    ASSERT_EQ(found.complaints.size(), 1U);
    EXPECT_THAT(found.complaints[0].text, HasSubstr("configuration space beyond 64 bytes is not readable"));
    EXPECT_THAT(found.complaints[0].text, HasSubstr("root"));
    EXPECT_THAT(found.complaints[0].text, HasSubstr("(and 2 more)"));
    EXPECT_EQ(found.functions[0].access_control, std::nullopt);
}

TEST_P(SysfsTest, AFunctionOfALargeSegmentIsAPlatformDeviceOfThatName) {
    machine_.add_function("10000:01:00.0", ConfigSpace{}.express(0x40, 0).put32(0x08, 0x01080201).text());
    machine_.add_function("10000:00:00.0", ConfigSpace{}.put8(0x0e, 1).express(0x40, 4).text());
    machine_.set_driver("10000:01:00.0", "nvme");
    machine_.set_group("10000:01:00.0", 3);
    machine_.add_unit("dmar0", "fed90000");
    machine_.set_unit("10000:01:00.0", "dmar0");
    const HostView found = view();
    EXPECT_TRUE(found.functions.empty());
    ASSERT_EQ(found.platform_devices.size(), 2U);
    EXPECT_TRUE(found.platform_devices[0].is_bridge);
    const PlatformDevice& drive = found.platform_devices[1];
    EXPECT_EQ(drive.name, "10000:01:00.0");
    EXPECT_TRUE(drive.is_pci);
    EXPECT_FALSE(drive.is_bridge);
    EXPECT_EQ(drive.driver, "nvme");
    EXPECT_EQ(drive.group, 3U);
    EXPECT_EQ(drive.kernel_unit, "dmar0");
    EXPECT_EQ(drive.class_code, 0x010802U);
    EXPECT_THAT(drive.title, HasSubstr("8086:"));
}

TEST_P(SysfsTest, BrokenNamesAndTextsAreComplaintsAndTheRestIsRead) {
    machine_.add_function("0000:00:02.0", "short");
    machine_.add_function("10000:00:02.0", ConfigSpace{}.text());
    machine_.add_function("0000:00:04.0", std::string(config_bytes + 1, '\0'));
    machine_.add_function("0000:00:05.0", ConfigSpace{}.capability(0x40, 5, 0x40).text());
    machine_.set_group("0000:00:05.0", 1);
    machine_.put("sys/kernel/iommu_groups/1/reserved_regions", "rubbish\n");
    machine_.put("sys/kernel/iommu_groups/x/type", "DMA\n");
    machine_.link(device("0000:00:04.0") + "/iommu_group", "../../groups/99999999999");
    const HostView found = view();
    EXPECT_EQ(found.functions.size(), 3U);
    EXPECT_EQ(found.functions[1].group, std::nullopt);
    EXPECT_EQ(found.groups.size(), 1U);
    std::string all;
    for (const Complaint& complaint : found.complaints) all += complaint.text + "\n";
    EXPECT_THAT(all, HasSubstr("configuration space of 5 bytes"));
    EXPECT_THAT(all, HasSubstr("without a PCI address"));
    EXPECT_THAT(all, HasSubstr("larger than the limit of 4096"));
    EXPECT_THAT(all, HasSubstr("runs in a circle"));
    EXPECT_THAT(all, HasSubstr("'reserved_regions' is not understood"));
    EXPECT_THAT(all, HasSubstr("whose name is no number"));
    EXPECT_EQ(found.complaints.size(), 6U);
}

TEST(Sysfs, NoAnswerOfTheKernelEndsTheReading) {
    MachineTree machine;
    machine.add_function("0000:00:02.0", ConfigSpace{}.express(0x40, 0).text());
    machine.set_group("0000:00:02.0", 7);
    machine.put("proc/cmdline", "iommu=pt\n");
    const auto tree = open_host_tree(machine.path()).value();
    std::uint64_t count_complaints = 0;
    for (std::uint64_t nth = 0;; ++nth) {
        ASSERT_LT(nth, 500U);
        const FaultInjector injector{nth, {.os_error = EACCES}};
        const auto view = read_host_view(*tree);
        if (!injector.has_fired()) break;
        ASSERT_TRUE(view) << view.error().message();
        count_complaints += view->complaints.size();
    }
    EXPECT_GT(count_complaints, 10U);
}

TEST(Sysfs, MoreNamesThanTheLimitAreAnError) {
    TarWriter writer;
    for (std::size_t i = 0; i <= max_host_names; ++i)
        ASSERT_TRUE(writer.add_file("sys/kernel/iommu_groups/" + std::to_string(i) + "/type", ""));
    const auto tree = host_tree_of(TarArchive::read(std::move(writer).finish()).value());
    EXPECT_EQ(read_host_view(*tree).error().code(), Errc::out_of_range);
}

TEST(Sysfs, TheLiveMachineHasAPageSizeAndARelease) {
    const auto tree = open_host_tree("/").value();
    const HostView view = read_host_view(*tree).value();
    EXPECT_FALSE(view.settings.release.empty());
    EXPECT_GE(view.settings.page_bytes, 4096U);
}

}  // namespace
}  // namespace guestmem::dma
