// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/capture_rules.hpp"

#include <gtest/gtest.h>

namespace guestmem::dma {
namespace {

TEST(CaptureRules, OnlyWordsAboutIommuPciAndVfioAreKept) {
    EXPECT_EQ(kept_words("BOOT_IMAGE=/vmlinuz root=UUID=1234 ro intel_iommu=on,sm_on iommu=pt quiet\n"),
              "intel_iommu=on,sm_on iommu=pt");
    EXPECT_EQ(kept_words("iommu.strict=1\tiommu.passthrough=0 vfio-pci.ids=8086:10d3 vfio_iommu_type1.x=1"),
              "iommu.strict=1 iommu.passthrough=0 vfio-pci.ids=8086:10d3 vfio_iommu_type1.x=1");
    EXPECT_EQ(kept_words("pcie_acs_override=downstream pci=noats efi=disable_early_pci_dma efi=debug"),
              "pcie_acs_override=downstream pci=noats efi=disable_early_pci_dma");
    EXPECT_EQ(kept_words("amd_iommu=off arm-smmu.disable_bypass=0 intremap=off"),
              "amd_iommu=off arm-smmu.disable_bypass=0 intremap=off");
    EXPECT_EQ(kept_words("nointremap noiommu nox2apic acpi=off acpi_x=1 \"intremap=off\" \"x=1\""),
              "nointremap noiommu nox2apic acpi=off \"intremap=off\"");
    EXPECT_EQ(kept_words("password=iommu=on ip=10.0.0.1 luks=iommu"), "");
    EXPECT_EQ(kept_words("iommu=on -- iommu=off"), "iommu=on") << "behind it are the words of init";
    EXPECT_EQ(kept_words("  \n"), "");
}

TEST(CaptureRules, TargetsLoseTheirWayUp) {
    EXPECT_EQ(inner_target("../../../bus/pci/drivers/e1000e"), "bus/pci/drivers/e1000e");
    EXPECT_EQ(inner_target("/etc/passwd"), "etc/passwd");
    EXPECT_EQ(inner_target("..//../x"), "x");
    EXPECT_EQ(inner_target("dmar0"), "dmar0");
    EXPECT_EQ(inner_target("../"), "");
}

TEST(CaptureRules, OfTheMemoryOnlyItsTotalIsKept) {
    EXPECT_EQ(memory_total_line("MemTotal:       16303428 kB\nMemFree:  1 kB\n"), "MemTotal: 16303428 kB\n");
    EXPECT_EQ(memory_total_line("MemFree: 1 kB\n"), "");
}

}  // namespace
}  // namespace guestmem::dma
