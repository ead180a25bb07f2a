// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/report/inventory_tree.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "guestmem/dma/report/testing/small_inventory.hpp"

namespace guestmem::dma {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(InventoryTreeTest, UnitsBusesGroupsAndDevicesHangBelowEachOther) {
    EXPECT_EQ(to_tree(testing::small_inventory()),
              R"(vtd@fed90000  VT-d, kernel's dmar0, from: DMAR offset 0x30; kernel
|  39-bit addresses; pages of 4K, 2M, 1G; remaps interrupts; a device that may write may read, too
+- bus 0000:00
   +- 00:03.0  1234:11e8 unclassified device, group 1, driver vfio-pci
   +- only together, group 6: 2 devices
      +- 00:08.0  1234:11e8 unclassified device
      +- 00:08.1  1234:11e8 unclassified device
      +- because 00:08.0 and 00:08.1 are functions of one device without ACS
vtd@fed91000  VT-d, not used by the kernel, from: DMAR offset 0x60
behind a unit that the kernel does not use: reaches all memory
+- bus 0000:01
   +- 01:00.0  1234:11e8 unclassified device, no group
behind no unit: reaches all memory
+- /soc/?[31m<b>&"dma"?@1  /soc/?[31m<b>&"dma"?@1, no group
bridges and IOMMUs that stand alone are not shown: 1
note: DMAR offset 0x80: a unit at address 0 is left out
)");
}

TEST(InventoryTreeTest, DetailsAndBridgesAreShownOnRequest) {
    const std::string text = to_tree(testing::small_inventory(), {.has_bridges = true, .has_details = true});
    EXPECT_THAT(text, HasSubstr("00:04.0"));
    EXPECT_THAT(text, HasSubstr("ids 0x18\n"));
    EXPECT_THAT(text, HasSubstr("0xfee00000 to 0xfeefffff msi, from: kernel"));
    EXPECT_THAT(text, HasSubstr("from: DMAR offset 0x40"));
    EXPECT_THAT(text, Not(HasSubstr("bridges and IOMMUs that stand alone")));
}

TEST(InventoryTreeTest, LinesMayBeDrawn) {
    const std::string text = to_tree(testing::small_inventory(), {.is_unicode = true});
    EXPECT_THAT(text, HasSubstr("└─ bus 0000:00\n   ├─ 00:03.0"));
}

TEST(InventoryTreeTest, NoNameReachesTheTerminalAsAControlCharacter) {
    const std::string text = to_tree(testing::small_inventory(), {.has_bridges = true, .has_details = true});
    EXPECT_TRUE(std::ranges::all_of(text, [](char c) { return c == '\n' || (c >= ' ' && c <= '~'); }));
}

TEST(InventoryTreeTest, AnInventoryWithoutAnythingSaysSo) {
    EXPECT_EQ(to_tree(Inventory{}), "no IOMMU and no device was found\n");
}

}  // namespace
}  // namespace guestmem::dma
