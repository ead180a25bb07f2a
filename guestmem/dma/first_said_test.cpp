// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/first_said.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <random>

namespace guestmem::dma {
namespace {

Selector function(std::uint16_t segment, std::uint16_t rid) {
    return PciRange{.segment = segment, .first_rid = rid, .last_rid = rid};
}

TEST(FirstSaid, TheFirstFactThatSelectsADeviceIsFound) {
    const std::vector<Selector> devices{function(0, 0x10), function(0, 0x18), function(1, 0x10),
                                        MmioDevice{.registers = 0x1000}};
    FirstSaid first{devices};
    first.tell(PciRange{.segment = 0, .first_rid = 0x11, .last_rid = 0x20}, 0xffff, 0);
    first.tell(PciPath{.segment = 0, .start_bus = 0, .hops = {{2, 0}}}, 0xffff, 1);
    first.tell(PciRange{}, 0xffff, 2);
    first.tell(MmioDevice{.registers = 0x1000, .registers_bytes = 64}, 0xffff, 3);
    first.tell(PciRest{.segment = 1}, 0xffff, 4);
    EXPECT_EQ(first.first_of(0), 1U);
    EXPECT_EQ(first.first_of(1), 0U);
    EXPECT_EQ(first.first_of(2), 4U);
    EXPECT_EQ(first.first_of(3), 3U);
}

TEST(FirstSaid, TheRestIsAskedLastAndPathsThroughBridgesAreNotSeen) {
    FirstSaid first{std::vector<Selector>{function(0, 0x10), function(0, 0x18)}};
    first.tell(PciRest{.segment = 0}, 0xffff, 0);
    first.tell(PciPath{.segment = 0, .start_bus = 0, .hops = {{2, 0}}, .is_bridge = true}, 0xffff, 1);
    first.tell(PciPath{.segment = 0, .start_bus = 0, .hops = {{2, 0}, {0, 0}}}, 0xffff, 2);
    first.tell(NamedDevice{.path = "\\_SB_.DEV0"}, 0xffff, 3);
    EXPECT_EQ(first.first_of(0), 0U);
    first.tell(PciRange{.segment = 0, .first_rid = 0x18, .last_rid = 0x18}, 0xffff, 4);
    EXPECT_EQ(first.first_of(0), 0U);
    EXPECT_EQ(first.first_of(1), 4U);
}

TEST(FirstSaid, MasksAreSeenUpToTheLimitAndNotBeyond) {
    FirstSaid first{std::vector<Selector>{function(0, 0xffff)}};
    for (std::uint16_t mask = 1; mask <= FirstSaid::max_masks; ++mask)
        first.tell(PciRange{.segment = 0, .first_rid = 0, .last_rid = 0}, mask, mask);
    first.tell(PciRange{.segment = 0, .first_rid = 9, .last_rid = 9}, 9, 9);
    EXPECT_EQ(first.first_of(0), std::nullopt) << "a ninth mask";
    first.tell(PciRange{.segment = 0, .first_rid = 8, .last_rid = 8}, 8, 10);
    EXPECT_EQ(first.first_of(0), 10U);
}

TEST(FirstSaid, ItFindsWhatTryingAllFactsInOrderFinds) {
    for (unsigned seed = 0; seed < 300; ++seed) {
        SCOPED_TRACE(fmt::format("seed {}", seed));
        std::mt19937 random{seed};
        const auto below = [&](unsigned limit) {
            return static_cast<std::uint16_t>(std::uniform_int_distribution<unsigned>{0, limit - 1}(random));
        };
        std::vector<Selector> devices;
        for (unsigned at = 0; at < 20; ++at) devices.push_back(function(below(2), below(64)));
        std::vector<std::pair<PciRange, std::uint16_t>> facts;
        static constexpr std::array<std::uint16_t, 3> masks{0xffff, 0xfff8, 0x0f};
        FirstSaid first{devices};
        for (std::size_t fact = 0; fact < 12; ++fact) {
            const std::uint16_t from = below(64);
            const PciRange range{.segment = below(2),
                                 .first_rid = from,
                                 .last_rid = static_cast<std::uint16_t>(from + below(16))};
            facts.emplace_back(range, masks[below(3)]);
            first.tell(range, facts.back().second, fact);
        }
        for (std::size_t at = 0; at < devices.size(); ++at) {
            const auto device = std::get<PciRange>(devices[at]);
            std::optional<std::size_t> expected;
            for (std::size_t fact = 0; fact < facts.size() && !expected; ++fact) {
                const auto& [range, mask] = facts[fact];
                const unsigned rid = device.first_rid & mask;
                if (range.segment == device.segment && range.first_rid <= rid && rid <= range.last_rid)
                    expected = fact;
            }
            ASSERT_EQ(first.first_of(at), expected);
        }
    }
}

}  // namespace
}  // namespace guestmem::dma
