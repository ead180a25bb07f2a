// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/pci_topology.hpp"

#include <gtest/gtest.h>

#include <random>

#include "guestmem/dma/testing/machines.hpp"

namespace guestmem::dma {
namespace {

using testing::bridge;
using testing::endpoint;
using testing::virtual_function;

constexpr std::uint32_t none = PciTopology::none;

TEST(PciTopologyTest, AFunctionIsBelowTheBridgeWhoseSecondaryBusItIsOn) {
    ComplaintList complaints;
    const std::vector functions = {
        endpoint(pci_address(0, 0, 0, 0)),
        bridge(pci_address(0, 0, 1, 0), PortType::root_port, 1, 3),
        bridge(pci_address(0, 1, 0, 0), PortType::upstream_port, 2, 3),
        bridge(pci_address(0, 2, 0, 0), PortType::downstream_port, 3, 3),
        endpoint(pci_address(0, 3, 0, 0)),
        endpoint(pci_address(1, 3, 0, 0)),
    };
    const PciTopology topology(functions, complaints);
    EXPECT_EQ(topology.parent(0), none);
    EXPECT_EQ(topology.parent(1), none);
    EXPECT_EQ(topology.parent(2), 1U);
    EXPECT_EQ(topology.parent(3), 2U);
    EXPECT_EQ(topology.parent(4), 3U);
    EXPECT_EQ(topology.parent(5), none) << "another segment has buses of its own";
    EXPECT_EQ(topology.last_position(1) - topology.position(1), 3U);
    EXPECT_EQ(topology.last_position(5), topology.position(5));
    EXPECT_TRUE(complaints.take().empty());
}

TEST(PciTopologyTest, AVirtualFunctionOnABusOfItsOwnIsBesideItsPhysicalFunction) {
    ComplaintList complaints;
    const PciAddress physical = pci_address(0, 1, 0, 0);
    const std::vector functions = {
        bridge(pci_address(0, 0, 1, 0), PortType::root_port, 1, 2),
        endpoint(physical),
        virtual_function(pci_address(0, 2, 0, 0), physical),
        virtual_function(pci_address(0, 9, 0, 0), physical),
        virtual_function(pci_address(0, 9, 0, 1), pci_address(0, 9, 0, 0)),
    };
    const PciTopology topology(functions, complaints);
    EXPECT_EQ(topology.parent(2), 0U);
    EXPECT_EQ(topology.parent(3), 0U);
    EXPECT_EQ(topology.parent(4), none) << "a virtual function has none of its own";
}

TEST(PciTopologyTest, AnOwnerlessBusBelongsToTheNearestBridgeAroundIt) {
    ComplaintList complaints;
    const std::vector functions = {
        bridge(pci_address(0, 0, 1, 0), PortType::root_port, 1, 9),
        bridge(pci_address(0, 1, 0, 0), PortType::upstream_port, 2, 5),
        endpoint(pci_address(0, 4, 0, 0)),
        endpoint(pci_address(0, 7, 0, 0)),
        endpoint(pci_address(0, 10, 0, 0)),
    };
    const PciTopology topology(functions, complaints);
    EXPECT_EQ(topology.parent(2), 1U);
    EXPECT_EQ(topology.parent(3), 0U);
    EXPECT_EQ(topology.parent(4), none);
}

TEST(PciTopologyTest, BusNumbersThatCannotBeAreComplaintsAndNeverLoops) {
    ComplaintList complaints;
    const std::vector functions = {
        bridge(pci_address(0, 0, 1, 0), PortType::root_port, 0, 9),  // its own bus
        bridge(pci_address(0, 0, 2, 0), PortType::root_port, 3, 1),  // ends before it begins
        bridge(pci_address(0, 0, 3, 0), PortType::root_port, 3, 3),  // the same again
        bridge(pci_address(0, 3, 0, 0), PortType::root_port, 2, 9),  // back up
        bridge(pci_address(0, 4, 0, 0), PortType::root_port, 0, 0),  // not set up: nothing is wrong
        endpoint(pci_address(0, 9, 0, 0)),
    };
    const PciTopology topology(functions, complaints);
    EXPECT_EQ(topology.parent(3), 1U);
    EXPECT_EQ(topology.parent(5), none);
    EXPECT_EQ(topology.preorder().size(), functions.size());
    EXPECT_EQ(complaints.take().size(), 4U);
}

TEST(PciTopologyTest, APathIsWalkedThroughTheMachinesOwnBusNumbers) {
    ComplaintList complaints;
    const std::vector functions = {
        bridge(pci_address(0, 0, 0x1c, 0), PortType::root_port, 4, 5),
        bridge(pci_address(0, 4, 0, 1), PortType::express_to_pci_bridge, 5, 5),
        endpoint(pci_address(0, 5, 2, 0)),
    };
    const PciTopology topology(functions, complaints);
    EXPECT_EQ(topology.walk({.hops = {{0x1c, 0}}}), 0U);
    EXPECT_EQ(topology.walk({.hops = {{0x1c, 0}, {0, 1}, {2, 0}}}), 2U);
    EXPECT_EQ(topology.walk({.start_bus = 4, .hops = {{0, 1}}}), 1U);
    EXPECT_EQ(topology.walk({.hops = {{0x1c, 0}, {1, 1}}}), none);
    EXPECT_EQ(topology.walk({.hops = {{0x1c, 0}, {0, 1}, {2, 0}, {0, 0}}}), none) << "through an endpoint";
    EXPECT_EQ(topology.walk({.segment = 1, .hops = {{0x1c, 0}}}), none);
    EXPECT_EQ(topology.walk({}), none);
}

TEST(PciTopologyTest, WhateverTheBusNumbersAreEachFunctionIsListedOnceAndAfterItsBridge) {
    for (unsigned seed = 0; seed < 200; ++seed) {
        std::mt19937 random(seed);
        std::set<std::uint16_t> rids;
        while (rids.size() < 60) {
            rids.insert(static_cast<std::uint16_t>(random() % 0x800));
        }
        std::vector<PciFunction> functions;
        for (const std::uint16_t rid : rids) {
            const auto number = [&] { return static_cast<std::uint8_t>(random() % 10); };
            functions.push_back(random() % 2 == 0
                                    ? endpoint({0, rid})
                                    : bridge({0, rid}, PortType::root_port, number(), number()));
            if (random() % 4 == 0) {
                functions.back().physical_function =
                    PciAddress{0, *std::next(rids.begin(), static_cast<int>(random() % 60))};
            }
        }
        ComplaintList complaints;
        const PciTopology topology(functions, complaints);
        ASSERT_EQ(topology.preorder().size(), functions.size()) << "seed " << seed;
        for (std::uint32_t i = 0; i < functions.size(); ++i) {
            ASSERT_EQ(topology.preorder()[topology.position(i)], i) << "seed " << seed;
            const std::uint32_t above = topology.parent(i);
            if (above != none) {
                ASSERT_LT(topology.position(above), topology.position(i)) << "seed " << seed;
                ASSERT_GE(topology.last_position(above), topology.last_position(i)) << "seed " << seed;
            }
        }
    }
}

}  // namespace
}  // namespace guestmem::dma
