// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/unit_table.hpp"

#include <gtest/gtest.h>

namespace guestmem::dma {
namespace {

UnitFact fact(UnitKind kind, std::uint64_t registers) {
    return {.name = unit_name(kind, registers), .kind = kind, .registers = registers};
}

TEST(UnitTableTest, KernelAndTableMeetByRegistersFunctionOrName) {
    SourceFacts facts;
    facts.units = {fact(UnitKind::vt_d, 0xfed90000),
                   fact(UnitKind::smmu_v3, 0x9050000),
                   {.name = "amdvi@0000:00:00.2",
                    .kind = UnitKind::amd_vi,
                    .registers = 0xfeb80000,
                    .function = pci_address(0, 0, 0, 2)},
                   {.name = "virtio-iommu@0000:00:02.0",
                    .kind = UnitKind::virtio_iommu,
                    .function = pci_address(0, 0, 2, 0)}};
    facts.platform.has_interrupt_remapping = true;
    HostView view;
    view.units = {{.name = "dmar0", .registers = 0xfed90000, .extended = 0b1000},
                  {.name = "smmu3.0x0000000009050000"},
                  {.name = "ivhd0", .function = pci_address(0, 0, 0, 2)},
                  {.name = "0000:00:02.0"}};
    ComplaintList complaints;
    const UnitTable table(facts, view, complaints);
    ASSERT_EQ(table.units().size(), 4U);
    EXPECT_EQ(table.units()[0].kernel_name, "dmar0");
    EXPECT_EQ(table.units()[0].abilities.has_interrupt_remapping, true);
    EXPECT_EQ(table.units()[1].kernel_name, "smmu3.0x0000000009050000");
    EXPECT_EQ(table.units()[2].kernel_name, "ivhd0");
    EXPECT_EQ(table.units()[3].kernel_name, "0000:00:02.0");
    EXPECT_EQ(table.units()[0].origins.size(), 2U);
    EXPECT_EQ(table.find("vtd@fed90000"), 0U);
    EXPECT_EQ(table.find_kernel("ivhd0"), 2U);
    EXPECT_EQ(table.find_function(pci_address(0, 0, 2, 0)), 3U);
    EXPECT_EQ(table.find("vtd@0"), std::nullopt);
    EXPECT_TRUE(complaints.take().empty());
}

TEST(UnitTableTest, InterruptsOfAmdViAreRemappedWhenItsTableNamesAnIoApic) {
    const std::string name = "amdvi@0000:00:00.2";
    SourceFacts facts;
    facts.platform.has_interrupt_remapping = true;  // of another table
    HostView view;
    view.units = {{.name = "ivhd0", .function = pci_address(0, 0, 0, 2)}};
    const auto remapping = [&] {
        ComplaintList complaints;
        return UnitTable(facts, view, complaints).units().at(0).abilities.has_interrupt_remapping;
    };
    EXPECT_EQ(remapping(), std::nullopt);
    facts.units = {{.name = name,
                    .kind = UnitKind::amd_vi,
                    .function = pci_address(0, 0, 0, 2),
                    .origin = {Source::ivrs}}};
    EXPECT_EQ(remapping(), false);
    facts.covers = {{.unit = name, .which = InterruptSender{}, .origin = {Source::ivrs}}};
    EXPECT_EQ(remapping(), true);
}

TEST(UnitTableTest, AUnitThatOnlyTheKernelKnowsIsThereWithTheKernelAsOrigin) {
    HostView view;
    view.units = {{.name = "dmar1", .registers = 0xfed91000}, {.name = "somebody"}};
    ComplaintList complaints;
    const UnitTable table({}, view, complaints);
    ASSERT_EQ(table.units().size(), 2U);
    EXPECT_EQ(table.units()[0].name, "vtd@fed91000");
    EXPECT_EQ(table.units()[0].kind, UnitKind::vt_d);
    EXPECT_EQ(table.units()[0].origins.at(0).source, Source::kernel);
    EXPECT_EQ(table.units()[1].name, "somebody");
    EXPECT_EQ(table.units()[1].kind, UnitKind::other);
}

TEST(UnitTableTest, FactsOfOneNameOrPlaceAreOneUnitAndTheFirstDecides) {
    SourceFacts facts;
    facts.units = {{.name = "gpu_unit", .kind = UnitKind::vt_d},
                   {.name = "gpu_unit", .kind = UnitKind::vt_d, .registers = 0x1000},
                   fact(UnitKind::vt_d, 0x1000),
                   fact(UnitKind::smmu_v2, 0x1000)};
    ComplaintList complaints;
    const UnitTable table(facts, {}, complaints);
    ASSERT_EQ(table.units().size(), 2U);
    EXPECT_EQ(table.units()[0].registers, 0x1000U);
    EXPECT_EQ(table.find("vtd@1000"), 0U);
    EXPECT_EQ(table.units()[0].origins.size(), 3U);
    EXPECT_EQ(table.units()[1].kind, UnitKind::smmu_v2) << "one address of two kinds is two units";
    EXPECT_TRUE(table.units()[0].kernel_name.empty());
}

TEST(UnitTableTest, TwoKernelUnitsInOnePlaceAreAComplaint) {
    HostView view;
    view.units = {{.name = "dmar0", .registers = 0x1000}, {.name = "dmar1", .registers = 0x1000}};
    ComplaintList complaints;
    const UnitTable table({}, view, complaints);
    EXPECT_EQ(table.units().size(), 1U);
    EXPECT_EQ(table.find_kernel("dmar1"), 0U);
    EXPECT_EQ(complaints.take().size(), 1U);
}

TEST(UnitTableTest, TheKindIsInTheKernelsName) {
    EXPECT_EQ(kind_of_kernel_unit("dmar12"), UnitKind::vt_d);
    EXPECT_EQ(kind_of_kernel_unit("ivhd0"), UnitKind::amd_vi);
    EXPECT_EQ(kind_of_kernel_unit("smmu3.0x9050000"), UnitKind::smmu_v3);
    EXPECT_EQ(kind_of_kernel_unit("smmu.0x51400000"), UnitKind::smmu_v2);
    EXPECT_EQ(kind_of_kernel_unit("virtio1"), UnitKind::virtio_iommu);
    EXPECT_EQ(kind_of_kernel_unit("0000:00:01.0"), UnitKind::virtio_iommu);
    EXPECT_EQ(kind_of_kernel_unit(""), UnitKind::other);
}

}  // namespace
}  // namespace guestmem::dma
