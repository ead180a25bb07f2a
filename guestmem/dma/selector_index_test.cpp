// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/selector_index.hpp"

#include <gtest/gtest.h>

#include <random>

#include "guestmem/dma/testing/machines.hpp"

namespace guestmem::dma {
namespace {

using testing::bridge;
using testing::endpoint;

using Facts = std::vector<std::uint32_t>;

std::vector<PciFunction> two_buses() {
    return {endpoint(pci_address(0, 0, 0, 0)), bridge(pci_address(0, 0, 1, 0), PortType::root_port, 1, 1),
            endpoint(pci_address(0, 1, 0, 0)), endpoint(pci_address(0, 1, 0, 1)),
            endpoint(pci_address(1, 0, 0, 0))};
}

TEST(SelectorIndexTest, EachSelectorSelectsWhatItSays) {
    ComplaintList complaints;
    const auto functions = two_buses();
    const PciTopology topology(functions, complaints);
    SelectorIndex index(topology, std::vector{pci_address(0, 1, 0, 0)});
    index.add(PciRange{0, 8, 0x100}, 0xffff, 0);
    index.add(PciPath{.hops = {{1, 0}}, .is_bridge = true}, 0xffff, 1);
    index.add(PciPath{.hops = {{1, 0}, {0, 1}}}, 0xffff, 2);
    index.add(PciRest{1}, 0xffff, 3);
    index.add(PciRange{0, 0x100, 0x100}, 0xfff8, 4);
    index.add_function(0, 5);
    EXPECT_EQ(index.add(PciPath{.hops = {{2, 0}}}, 0xffff, 6), SelectorIndex::Added::selects_nothing);
    EXPECT_EQ(index.add(PciRange{0, 9, 10}, 0xffff, 6), SelectorIndex::Added::selects_nothing);
    EXPECT_EQ(index.add(PciRange{0, 10, 9}, 0xffff, 6), SelectorIndex::Added::selects_nothing);
    EXPECT_EQ(index.add(NamedDevice{"x"}, 0xffff, 6), SelectorIndex::Added::selects_nothing);
    const auto found = index.facts_of_points(10);
    EXPECT_EQ(found[0], Facts{5});
    EXPECT_EQ(found[1], (Facts{0, 1}));
    EXPECT_EQ(found[2], (Facts{0, 1, 4}));
    EXPECT_EQ(found[3], (Facts{1, 2, 4})) << "the mask takes the function away";
    EXPECT_EQ(found[4], Facts{3});
    EXPECT_EQ(found[5], (Facts{0, 4})) << "a further point is in no tree";
}

TEST(SelectorIndexTest, MasksAreLimitedAndTheFirstFactsAreKept) {
    ComplaintList complaints;
    const auto functions = two_buses();
    const PciTopology topology(functions, complaints);
    SelectorIndex index(topology, {});
    for (std::uint16_t i = 0; i < SelectorIndex::most_masks; ++i) {
        EXPECT_EQ(index.add(PciRange{}, static_cast<std::uint16_t>(0x8000 + i), i),
                  SelectorIndex::Added::added);
    }
    EXPECT_EQ(index.add(PciRange{}, 0x4000, 16), SelectorIndex::Added::too_many_masks);
    EXPECT_EQ(index.add(PciRange{}, 0x8000, 17), SelectorIndex::Added::added);
    EXPECT_EQ(index.facts_of_points(3)[0], (Facts{0, 1, 2}));
}

TEST(SelectorIndexTest, WhatIsFoundIsWhatAskingEachFactAboutEachFunctionFinds) {
    for (unsigned seed = 0; seed < 300; ++seed) {
        std::mt19937 random(seed);
        std::set<std::uint16_t> rids;
        while (rids.size() < 40) {
            rids.insert(static_cast<std::uint16_t>(random() % 0x200));
        }
        std::vector<PciFunction> functions;
        for (const std::uint16_t rid : rids) {
            functions.push_back(endpoint({static_cast<std::uint16_t>(rid & 1), rid}));
        }
        std::ranges::sort(functions, {}, &PciFunction::address);
        ComplaintList complaints;
        const PciTopology topology(functions, complaints);
        SelectorIndex index(topology, {});
        std::vector<Facts> expected(functions.size());
        const std::size_t most = 1 + random() % 8;
        for (std::uint32_t fact = 0; fact < 30; ++fact) {
            const auto rid = [&] { return static_cast<std::uint16_t>(random() % 0x200); };
            const PciRange range{static_cast<std::uint16_t>(random() % 2), rid(), rid()};
            constexpr std::uint16_t masks[] = {0xffff, 0xfff8, 0xff0f};
            const std::uint16_t mask = masks[random() % 3];
            index.add(range, mask, fact);
            for (std::size_t i = 0; i < functions.size(); ++i) {
                const PciAddress at = functions[i].address;
                if (at.segment == range.segment && (at.rid & mask) >= range.first_rid &&
                    (at.rid & mask) <= range.last_rid && expected[i].size() < most) {
                    expected[i].push_back(fact);
                }
            }
        }
        ASSERT_EQ(index.facts_of_points(most), expected) << "seed " << seed;
    }
}

}  // namespace
}  // namespace guestmem::dma
