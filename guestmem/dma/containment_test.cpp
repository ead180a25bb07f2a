// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/containment.hpp"

#include <gtest/gtest.h>

namespace guestmem::dma {
namespace {

TEST(ContainmentTest, TheFirstReasonStaysAndASecondLeavesNoTrace) {
    std::vector<Device> devices(5);
    devices[1].kernel_group = 7;
    devices[3].kernel_group = 4;
    ContainmentSet set(devices.size());
    EXPECT_FALSE(set.is_joined(1, 3));
    EXPECT_TRUE(set.join(JoinReason::alias, 3, 1, "first"));
    EXPECT_FALSE(set.join(JoinReason::kernel_group, 1, 3, "second"));
    EXPECT_TRUE(set.join(JoinReason::unknown_acs, 4, 3, "third"));
    EXPECT_TRUE(set.is_joined(1, 4));

    const std::vector<Containment> containments = set.take(devices);
    ASSERT_EQ(containments.size(), 3U);
    EXPECT_EQ(containments[0].devices, std::vector<std::size_t>{0});
    EXPECT_EQ(containments[1].devices, (std::vector<std::size_t>{1, 3, 4}));
    EXPECT_EQ(containments[2].devices, std::vector<std::size_t>{2});
    EXPECT_EQ(containments[1].kernel_groups, (std::vector<std::uint32_t>{4, 7}));
    ASSERT_EQ(containments[1].joins.size(), 2U);
    EXPECT_EQ(containments[1].joins[0].text, "first");
    EXPECT_EQ(containments[1].joins[1].reason, JoinReason::unknown_acs);
    EXPECT_EQ(devices[4].containment, 1U);
    EXPECT_EQ(devices[2].containment, 2U);
}

TEST(ContainmentTest, NoDevicesMakeNoContainments) {
    std::vector<Device> devices;
    EXPECT_TRUE(ContainmentSet(0).take(devices).empty());
}

}  // namespace
}  // namespace guestmem::dma
