// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/pci_address.hpp"

#include <gtest/gtest.h>

namespace guestmem::dma {
namespace {

TEST(PciAddressTest, TextAndValueAreTheSameAddress) {
    const PciAddress address = pci_address(0x12, 0xab, 0x1f, 7);
    EXPECT_EQ(to_string(address), "0012:ab:1f.7");
    EXPECT_EQ(parse_pci_address("0012:ab:1f.7"), address);
    EXPECT_EQ(address.rid, 0xabff);
    EXPECT_EQ(address.bus(), 0xab);
    EXPECT_EQ(address.device(), 0x1f);
    EXPECT_EQ(address.function(), 7);
}

TEST(PciAddressTest, SegmentZeroMayBeLeftOut) {
    EXPECT_EQ(parse_pci_address("00:02.0"), pci_address(0, 0, 2, 0));
    EXPECT_EQ(to_short_string(pci_address(0, 0, 2, 0)), "00:02.0");
    EXPECT_EQ(to_short_string(pci_address(1, 0, 2, 0)), "0001:00:02.0");
}

TEST(PciAddressTest, WhatIsNoAddressIsRefused) {
    for (const char* text :
         {"", ":", "00", "00:02", "00:02.", "00:02.8", "00:20.0", "100:02.0", "00:02.0 ", "0000:00:02.0.1",
          "0:0:0:0.0", "10000:00:02.0", "-1:02.0", "zz:02.0", "00:02,0"}) {
        EXPECT_EQ(parse_pci_address(text), std::nullopt) << text;
    }
}

TEST(PciAddressTest, OrderIsSegmentThenRid) {
    EXPECT_LT(pci_address(0, 0xff, 0x1f, 7), pci_address(1, 0, 0, 0));
    EXPECT_LT(pci_address(0, 0, 2, 7), pci_address(0, 0, 3, 0));
}

}  // namespace
}  // namespace guestmem::dma
