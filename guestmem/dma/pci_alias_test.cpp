// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/pci_alias.hpp"

#include <gtest/gtest.h>

#include "guestmem/dma/testing/machines.hpp"

namespace guestmem::dma {
namespace {

using testing::bridge;
using testing::endpoint;

TEST(PciAliasTest, EachKindOfBridgeHasItsOwnWayWithIds) {
    const PciAddress at = pci_address(0, 2, 0, 0);
    EXPECT_EQ(PciAliases::alias_of(bridge(at, PortType::express_to_pci_bridge, 3, 3)),
              pci_address(0, 3, 0, 0));
    EXPECT_EQ(PciAliases::alias_of(bridge(at, PortType::conventional, 3, 3)), at);
    EXPECT_EQ(PciAliases::alias_of(bridge(at, PortType::pci_to_express_bridge, 3, 3)), at);
    for (const auto port : {PortType::root_port, PortType::upstream_port, PortType::downstream_port}) {
        EXPECT_EQ(PciAliases::alias_of(bridge(at, port, 3, 3)), std::nullopt);
    }
    EXPECT_EQ(PciAliases::alias_of(endpoint(at, PortType::conventional)), std::nullopt);
}

TEST(PciAliasTest, TheNearestBridgeThatAliasesIsFoundThroughPortsThatDoNot) {
    ComplaintList complaints;
    const std::vector functions = {
        bridge(pci_address(0, 0, 1, 0), PortType::express_to_pci_bridge, 1, 4),
        bridge(pci_address(0, 1, 0, 0), PortType::conventional, 2, 4),
        bridge(pci_address(0, 2, 0, 0), PortType::root_port, 3, 4),
        endpoint(pci_address(0, 3, 0, 0)),
        endpoint(pci_address(1, 0, 0, 0)),
    };
    const PciTopology topology(functions, complaints);
    const PciAliases aliases(topology);
    EXPECT_EQ(aliases.bridge_above(3), 1U);
    EXPECT_EQ(aliases.bridge_above(2), 1U);
    EXPECT_EQ(aliases.bridge_above(1), 0U);
    EXPECT_EQ(aliases.bridge_above(0), PciTopology::none);
    EXPECT_EQ(aliases.bridge_above(4), PciTopology::none);
}

TEST(PciAliasTest, ABridgeOfUnknownTypeAliasesUnlessTheKernelSeparates) {
    std::vector functions = {bridge(pci_address(0, 0, 1, 0), PortType::conventional, 1, 1),
                             endpoint(pci_address(0, 1, 0, 0))};
    ComplaintList complaints;
    functions[0].group = 1;
    functions[1].group = 2;
    EXPECT_EQ(PciAliases(PciTopology(functions, complaints)).bridge_above(1), 0U) << "it is known to be one";
    functions[0].access_control.reset();
    EXPECT_EQ(PciAliases(PciTopology(functions, complaints)).bridge_above(1), PciTopology::none);
    functions[1].group.reset();
    EXPECT_EQ(PciAliases(PciTopology(functions, complaints)).bridge_above(1), 0U);
}

}  // namespace
}  // namespace guestmem::dma
