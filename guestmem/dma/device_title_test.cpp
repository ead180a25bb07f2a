// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/device_title.hpp"

#include <gtest/gtest.h>

namespace guestmem::dma {
namespace {

TEST(DeviceTitleTest, AFunctionIsCalledByItsNumbersAndItsClass) {
    EXPECT_EQ(device_title({.vendor = 0x8086, .device = 0x10d3, .class_code = 0x020000}),
              "8086:10d3 Ethernet controller");
    EXPECT_EQ(device_title({.vendor = 0x1022, .device = 0x1451, .class_code = 0x080600}), "1022:1451 IOMMU");
}

TEST(DeviceTitleTest, AnUnknownSubclassHasTheNameOfItsClass) {
    EXPECT_EQ(class_name(0x02fe00), "network controller");
    EXPECT_EQ(class_name(0x010802), "NVMe controller");
    EXPECT_EQ(class_name(0x130000), "instrumentation");
    EXPECT_EQ(class_name(0x140000), "device");
    EXPECT_EQ(class_name(0xffffff), "device");
    EXPECT_EQ(class_name(0), "device");
}

}  // namespace
}  // namespace guestmem::dma
