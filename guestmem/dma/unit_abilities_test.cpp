// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/unit_abilities.hpp"

#include <gtest/gtest.h>

namespace guestmem::dma {
namespace {

constexpr std::uint64_t sizes_4k_2m_1g = 0x1000 | 0x200000 | 0x40000000;

/// The unit that QEMU 7.2 emulates: 39 bits, 4 KiB, 2 MiB and 1 GiB, interrupt remapping, no device TLB.
KernelUnit emulated_vt_d() { return {.name = "dmar0", .capability = 0xd2008c22260206, .extended = 0xf00f4a}; }

TEST(UnitAbilitiesTest, BitsOfVtdAreThoseOfTheManual) {
    const KernelUnit kernel = emulated_vt_d();
    const UnitAbilities abilities =
        abilities_of(UnitKind::vt_d, &kernel, {.address_bits = 39, .has_interrupt_remapping = true}, {});
    EXPECT_EQ(abilities.page_sizes & 0x1000, 0x1000U);
    EXPECT_EQ(abilities.input_bits, 39);
    EXPECT_EQ(abilities.output_bits, 39);
    EXPECT_EQ(abilities.has_interrupt_remapping, true);
    EXPECT_EQ(abilities.has_device_tlb, false);
    EXPECT_EQ(abilities.is_coherent, false);
    EXPECT_EQ(abilities.can_forbid_reads, false);

    const KernelUnit large{.capability = std::uint64_t{3} << 34 | 56 << 16 | 0xe << 8, .extended = 0b0101};
    const UnitAbilities more = abilities_of(UnitKind::vt_d, &large, {}, {});
    EXPECT_EQ(more.page_sizes, sizes_4k_2m_1g);
    EXPECT_EQ(more.input_bits, 57);
    EXPECT_EQ(more.has_interrupt_remapping, false);
    EXPECT_EQ(more.has_device_tlb, true);
    EXPECT_EQ(more.is_coherent, true);
    EXPECT_EQ(more.output_bits, std::nullopt);
}

TEST(UnitAbilitiesTest, TheNarrowerOfTableAndUnitIsTheInputWidth) {
    const KernelUnit kernel{.capability = std::uint64_t{38} << 16 | 1 << 10};
    EXPECT_EQ(abilities_of(UnitKind::vt_d, &kernel, {}, {}).input_bits, 39);
    const KernelUnit without{.capability = std::uint64_t{47} << 16};
    EXPECT_EQ(abilities_of(UnitKind::vt_d, &without, {}, {}).input_bits, std::nullopt);
}

TEST(UnitAbilitiesTest, InterruptRemappingNeedsUnitPlatformAndKernel) {
    const KernelUnit kernel = emulated_vt_d();
    EXPECT_EQ(
        abilities_of(UnitKind::vt_d, &kernel, {.has_interrupt_remapping = false}, {}).has_interrupt_remapping,
        false);
    EXPECT_EQ(abilities_of(UnitKind::vt_d, &kernel, {.has_interrupt_remapping = true},
                           {.command_line = "quiet intremap=off"})
                  .has_interrupt_remapping,
              false);
    EXPECT_EQ(abilities_of(UnitKind::vt_d, nullptr, {}, {}).has_interrupt_remapping, std::nullopt);
    EXPECT_EQ(abilities_of(UnitKind::vt_d, &kernel, {}, {}).has_interrupt_remapping, std::nullopt)
        << "the table was not read";
    EXPECT_EQ(abilities_of(UnitKind::amd_vi, &kernel, {}, {}).has_interrupt_remapping, std::nullopt);
    for (const bool is_said : {true, false}) {
        EXPECT_EQ(abilities_of(UnitKind::amd_vi, &kernel, {.has_interrupt_remapping = is_said}, {})
                      .has_interrupt_remapping,
                  is_said);
    }
    EXPECT_EQ(abilities_of(UnitKind::amd_vi, &kernel, {.has_interrupt_remapping = true},
                           {.command_line = "intremap=nosid"})
                  .has_interrupt_remapping,
              false);
    EXPECT_EQ(
        abilities_of(UnitKind::virtio_iommu, &kernel, {}, {.architecture = "x86_64"}).has_interrupt_remapping,
        false);
    EXPECT_EQ(abilities_of(UnitKind::virtio_iommu, &kernel, {}, {.architecture = "aarch64"})
                  .has_interrupt_remapping,
              std::nullopt);
}

TEST(UnitAbilitiesTest, OnlyAmdViAndVirtioIommuCanForbidReads) {
    const KernelUnit kernel;
    for (const auto kind : {UnitKind::vt_d, UnitKind::smmu_v2, UnitKind::smmu_v3}) {
        EXPECT_EQ(abilities_of(kind, &kernel, {}, {}).can_forbid_reads, false) << to_string(kind);
    }
    for (const auto kind : {UnitKind::amd_vi, UnitKind::virtio_iommu}) {
        EXPECT_EQ(abilities_of(kind, &kernel, {}, {}).can_forbid_reads, true) << to_string(kind);
    }
    EXPECT_EQ(abilities_of(UnitKind::other, &kernel, {}, {}).can_forbid_reads, std::nullopt);
}

TEST(UnitAbilitiesTest, AmdsWidthIsThatOfItsLevels) {
    KernelUnit kernel{.capability = 1 << 24, .extended = 0};
    EXPECT_EQ(abilities_of(UnitKind::amd_vi, &kernel, {}, {}).input_bits, 48);
    EXPECT_EQ(abilities_of(UnitKind::amd_vi, &kernel, {}, {}).has_device_tlb, true);
    kernel.extended = 2 << 10;
    EXPECT_EQ(abilities_of(UnitKind::amd_vi, &kernel, {}, {}).input_bits, 64);
    kernel.extended = 3 << 10;
    EXPECT_EQ(abilities_of(UnitKind::amd_vi, &kernel, {}, {}).input_bits, std::nullopt);
    EXPECT_EQ(abilities_of(UnitKind::amd_vi, &kernel, {}, {}).page_sizes, 0xffffff7ffffff000);
}

TEST(UnitAbilitiesTest, SmmuPagesFollowThoseOfTheKernel) {
    EXPECT_EQ(abilities_of(UnitKind::smmu_v3, nullptr, {}, {}).page_sizes, sizes_4k_2m_1g);
    EXPECT_EQ(abilities_of(UnitKind::smmu_v2, nullptr, {}, {.page_bytes = 65536}).page_sizes,
              0x10000U | 0x20000000U);
    EXPECT_EQ(abilities_of(UnitKind::smmu_v3, nullptr, {}, {.page_bytes = 16384}).page_sizes,
              0x4000U | 0x2000000U);
}

TEST(UnitAbilitiesTest, TheCommandLineIsReadAsTheKernelReadsIt) {
    for (const char* line : {"quiet intremap=off", "nointremap", "intremap=on,off", "intremap=nosid",
                             "intremap=nosid,on", "\"intremap=off\"", "intremap=\"nopost,off\"",
                             "intremap=on nointremap", "intremap=on\tintremap=off\n", "intremap=,off"}) {
        EXPECT_TRUE(is_remapping_off(line)) << line;
    }
    for (const char* line :
         {"", "xintremap=off", "intremap=off,on", "intremap=on", "intremap=no_x2apic_optout", "intremap",
          "nointremaps", "intremap=", "quiet -- intremap=off"}) {
        EXPECT_FALSE(is_remapping_off(line)) << line;
    }
}

TEST(UnitAbilitiesTest, AmdsTableSaysWithAnIoApicThatInterruptsAreRemapped) {
    SourceFacts facts;
    facts.platform.has_interrupt_remapping = true;
    EXPECT_EQ(remaps_interrupts(UnitKind::amd_vi, facts), std::nullopt) << "no IVRS";
    EXPECT_EQ(remaps_interrupts(UnitKind::vt_d, facts), true);
    facts.units = {{.name = "amdvi@0000:00:00.2", .kind = UnitKind::amd_vi, .origin = {Source::ivrs}}};
    EXPECT_EQ(remaps_interrupts(UnitKind::amd_vi, facts), false);
    facts.covers = {{.unit = facts.units[0].name,
                     .which = InterruptSender{InterruptSender::Kind::hpet, 0, {}},
                     .origin = {Source::ivrs}}};
    EXPECT_EQ(remaps_interrupts(UnitKind::amd_vi, facts), false);
    facts.covers[0].which = InterruptSender{InterruptSender::Kind::io_apic, 0, {}};
    EXPECT_EQ(remaps_interrupts(UnitKind::amd_vi, facts), true);
}

}  // namespace
}  // namespace guestmem::dma
