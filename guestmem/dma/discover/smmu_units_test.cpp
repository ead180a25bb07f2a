// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/smmu_units.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace guestmem::dma {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::optional<SmmuUnit> unit_of(SmmuType type, std::string_view text, std::string* findings = nullptr) {
    SmmuSources sources;
    const std::uint32_t source = sources.add({.name = "w", .text = std::string{text}});
    auto unit = read_smmu_unit(type, {text, {.source = source, .line = 1, .column = 1}}, sources);
    EXPECT_EQ(unit.has_value(), !sources.has_findings()) << text;
    if (findings != nullptr && sources.has_findings()) *findings = sources.to_error().message();
    return unit;
}

TEST(SmmuUnits, TheExampleOfTheSmmuV2DocumentationIsUnderstood) {
    const auto unit = unit_of(SmmuType::armsmmu, "0x51400000,64,66,1,4:5:16,imx8");
    ASSERT_TRUE(unit);
    EXPECT_EQ(unit->fact.kind, UnitKind::smmu_v2);
    EXPECT_EQ(unit->fact.registers, 0x51400000U);
    EXPECT_THAT(unit->details.interrupts, ElementsAre(64U, 66U));
    EXPECT_EQ(unit->details.lets_unknown_pass, true);
    EXPECT_THAT(unit->details.reserved_ids, ElementsAre(4U, 5U, 16U));
    EXPECT_EQ(unit->details.board_library, "imx8");
    EXPECT_THAT(unit->notes, ElementsAre(HasSubstr("not supported here: board DLL imx8"),
                                         HasSubstr("interrupts"), HasSubstr("all memory")));
}

TEST(SmmuUnits, AVtdUnitIsItsRegistersInHexadecimal) {
    const auto unit = unit_of(SmmuType::vtd, "fed90000");
    ASSERT_TRUE(unit);
    EXPECT_EQ(unit->fact.kind, UnitKind::vt_d);
    EXPECT_EQ(unit->fact.registers, 0xfed90000U);
}

TEST(SmmuUnits, UnitsThatArePciFunctionsHaveTheirSegment) {
    const auto amd = unit_of(SmmuType::amdvi, "pci:1:0:0.2");
    ASSERT_TRUE(amd);
    EXPECT_EQ(amd->fact.function, pci_address(1, 0, 0, 2));
    EXPECT_EQ(amd->fact.segment, 1);
    const auto virtio = unit_of(SmmuType::virtio_iommu, "mem:a003e00");
    ASSERT_TRUE(virtio);
    EXPECT_EQ(virtio->fact.registers, 0xa003e00U);
}

TEST(SmmuUnits, AParameterIsWrittenAsItIsRead) {
    for (const auto& [type, text] :
         std::vector<std::pair<SmmuType, std::string>>{{SmmuType::vtd, "0xfed90000"},
                                                       {SmmuType::armsmmu, "0x51400000,64,66,1,4:5:16,imx8"},
                                                       {SmmuType::armsmmu, "0x51400000,64,66,0"},
                                                       {SmmuType::armsmmu, "0x51400000,64,66,0,,imx8"},
                                                       {SmmuType::armsmmuv3, "0x9050000"},
                                                       {SmmuType::rcar3, "0xe67b0000,3"},
                                                       {SmmuType::amdvi, "pci:0:0.2"},
                                                       {SmmuType::virtio_iommu, "pci:0:1.0"},
                                                       {SmmuType::virtio_iommu, "mem:0xa003e00"}}) {
        const auto unit = unit_of(type, text);
        ASSERT_TRUE(unit) << text;
        EXPECT_EQ(to_unit_parameter(unit->fact, unit->details), text);
    }
}

TEST(SmmuUnits, AParameterOfAnotherFormIsRefusedWithTheForm) {
    std::string findings;
    EXPECT_FALSE(unit_of(SmmuType::armsmmu, "0x51400000,64", &findings));
    EXPECT_THAT(findings, HasSubstr("write unit NAME PADDR,CONTEXT_IRQ,GLOBAL_IRQ,BYPASS[,IDS[,DLL]]"));
    EXPECT_FALSE(unit_of(SmmuType::armsmmu, "0x51400000,64,66,2", &findings));
    EXPECT_THAT(findings, HasSubstr("BYPASS is 0 or 1"));
    for (const char* text : {"", "0", "pci:0:0.2", "0xfed90000,1"})
        EXPECT_FALSE(unit_of(SmmuType::vtd, text)) << text;
    EXPECT_FALSE(unit_of(SmmuType::amdvi, "0xfed90000"));
    EXPECT_FALSE(unit_of(SmmuType::rcar3, "0xe67b0000"));
}

TEST(SmmuUnits, ReservedIdsEndAtTheLimit) {
    std::string ids = "0";
    for (std::size_t at = 1; at < max_reserved_ids; ++at) ids += fmt::format(":{}", at);
    EXPECT_TRUE(unit_of(SmmuType::armsmmu, "1000,1,2,0," + ids));
    EXPECT_FALSE(unit_of(SmmuType::armsmmu, "1000,1,2,0," + ids + ":999"));
}

TEST(SmmuUnits, TheMainUnitOfRcarHasChipsBehindItsNumbers) {
    const auto is_good = [](std::string_view text) {
        SmmuSources sources;
        const std::uint32_t source = sources.add({.name = "w", .text = std::string{text}});
        return check_rcar_parameter({text, {.source = source, .line = 1, .column = 1}}, sources);
    };
    EXPECT_TRUE(is_good("e67b0000,228,1"));
    EXPECT_TRUE(is_good("e67b0000,228,1,82.17,90.16"));
    EXPECT_FALSE(is_good("e67b0000,228"));
    EXPECT_FALSE(is_good("e67b0000,228,1,82"));
}

TEST(SmmuUnits, AFirmwareNameSaysItsType) {
    EXPECT_EQ(type_of_firmware_name("vtd@fed90000"), SmmuType::vtd);
    EXPECT_EQ(type_of_firmware_name(unit_name(UnitKind::smmu_v3, 0x9050000)), SmmuType::armsmmuv3);
    EXPECT_EQ(type_of_firmware_name(unit_name(UnitKind::virtio_iommu, PciAddress{})), SmmuType::virtio_iommu);
    EXPECT_EQ(type_of_firmware_name("gfx"), std::nullopt);
}

}  // namespace
}  // namespace guestmem::dma
