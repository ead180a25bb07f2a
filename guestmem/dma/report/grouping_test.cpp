// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/report/grouping.hpp"

#include <gtest/gtest.h>

#include "guestmem/dma/report/testing/small_inventory.hpp"

namespace guestmem::dma {
namespace {

TEST(GroupingTest, EveryContainmentIsInOneBusOfOneHead) {
    const Inventory inventory = testing::small_inventory();
    const Shown shown = show(inventory, true);
    std::size_t count = 0;
    for (const ShownHead& head : shown.heads)
        for (const ShownBus& bus : head.buses) count += bus.containments.size();
    EXPECT_EQ(count, inventory.containments.size());
    EXPECT_EQ(shown.count_hidden, 0U);
    ASSERT_EQ(shown.heads.size(), 4U);
    EXPECT_TRUE(shown.heads[0].is_protected);
    EXPECT_TRUE(shown.heads[1].buses.empty()) << "its device is where the units are that are not used";
    EXPECT_FALSE(shown.heads[2].is_protected);
    EXPECT_EQ(shown.heads[3].buses.at(0).name, "") << "not on PCI";
}

TEST(GroupingTest, ABridgeThatStandsAloneIsCountedInstead) {
    const Inventory inventory = testing::small_inventory();
    const Shown shown = show(inventory, false);
    EXPECT_EQ(shown.count_hidden, 1U);
    EXPECT_EQ(shown.heads[0].buses.at(0).containments.size(), 2U);
}

TEST(GroupingTest, AnIommuThatIsAPciFunctionIsCountedAsABridgeIs) {
    Inventory inventory = testing::small_inventory();
    const std::size_t hidden = show(inventory, false).count_hidden;
    inventory.units[0].function = inventory.devices[0].pci;
    EXPECT_EQ(show(inventory, false).count_hidden, hidden + 1);
    EXPECT_EQ(show(inventory, true).count_hidden, 0U);
}

TEST(GroupingTest, HeadsWithoutAUnitAreThereOnlyWithDevices) {
    Inventory inventory = testing::small_inventory();
    inventory.containments.resize(3);
    EXPECT_EQ(show(inventory, false).heads.size(), 2U);
}

}  // namespace
}  // namespace guestmem::dma
