// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/facts.hpp"

#include <gtest/gtest.h>

namespace guestmem::dma {
namespace {

TEST(FactsTest, TwoSourcesThatMeanTheSameUnitNameItTheSame) {
    EXPECT_EQ(unit_name(UnitKind::vt_d, 0xfed90000), "vtd@fed90000");
    EXPECT_EQ(unit_name(UnitKind::smmu_v3, 0x9050000), "smmuv3@9050000");
    EXPECT_EQ(unit_name(UnitKind::amd_vi, pci_address(0, 0, 0, 2)), "amdvi@0000:00:00.2");
    EXPECT_EQ(unit_name(UnitKind::virtio_iommu, pci_address(1, 0, 2, 0)), "virtio-iommu@0001:00:02.0");
}

TEST(FactsTest, SelectorsAreShownAsPeopleWriteThem) {
    EXPECT_EQ(to_string(Selector{PciRange{0, 0x10, 0x10}}), "0000:00:02.0");
    EXPECT_EQ(to_string(Selector{PciRange{0, 0, 0xff}}), "0000:00:00.0-0000:00:1f.7");
    EXPECT_EQ(to_string(Selector{PciPath{0, 0, {{0x1c, 0}, {0, 1}}, true}}), "0000:00:1c.0/00.1 and below");
    EXPECT_EQ(to_string(Selector{MmioDevice{0xfe000000, 0x1000}}), "mem:0xfe000000");
    EXPECT_EQ(to_string(Selector{NamedDevice{"/soc/dma"}}), "/soc/dma");
    EXPECT_EQ(to_string(Selector{PciRest{2}}), "the rest of segment 0002");
    EXPECT_EQ(to_string(Selector{InterruptSender{InterruptSender::Kind::hpet, 3, {}}}), "HPET 3");
}

}  // namespace
}  // namespace guestmem::dma
