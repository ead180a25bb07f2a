// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/shared_identity.hpp"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

namespace guestmem::dma {
namespace {

std::vector<Containment> joined(const std::vector<UnitId>& ids, std::size_t count_devices,
                                UnitKind kind = UnitKind::smmu_v2) {
    std::vector<Device> devices(count_devices);
    std::vector<Unit> units(4);
    units[0].kind = kind;
    ContainmentSet set(count_devices);
    join_shared(ids, units, devices, set);
    return set.take(devices);
}

TEST(SharedIdentityTest, TheSameIdAtOneUnitJoinsAndAtTwoUnitsDoesNot) {
    EXPECT_EQ(joined({{0, 0, {5}}, {0, 1, {5}}}, 2).size(), 1U);
    EXPECT_EQ(joined({{0, 0, {5}}, {1, 1, {5}}}, 2).size(), 2U);
    EXPECT_EQ(joined({{0, 0, {5}}, {0, 1, {6}}}, 2).size(), 2U);
    EXPECT_EQ(joined({{0, 0, {5}}, {0, 1, {5}}}, 2)[0].joins[0].reason, JoinReason::shared_identity);
    EXPECT_EQ(joined({{0, 0, {5}}, {0, 1, {5}}}, 2, UnitKind::amd_vi)[0].joins[0].reason, JoinReason::alias);
}

TEST(SharedIdentityTest, IgnoredBitsMakeIdsTheSame) {
    EXPECT_EQ(joined({{0, 0, {0x10, 0xf}}, {0, 1, {0x1a}}}, 2).size(), 1U);
    EXPECT_EQ(joined({{0, 0, {0x10, 0xf}}, {0, 1, {0x2a}}}, 2).size(), 2U);
    EXPECT_EQ(joined({{0, 0, {0x10, 0x0f}}, {0, 1, {0x21, 0xf0}}}, 2).size(), 1U);
}

TEST(SharedIdentityTest, TwoIdsThatBothMatchAThirdAreJoinedThroughItOnly) {
    // 0x11 and 0x12 differ where neither ignores; only a masked id that covers both makes them one.
    EXPECT_EQ(joined({{0, 0, {0x11}}, {0, 1, {0x12}}, {0, 2, {0x90, 0xf}}}, 3).size(), 3U);
    EXPECT_EQ(joined({{0, 0, {0x11}}, {0, 1, {0x12}}, {0, 2, {0x10, 0xf}}}, 3).size(), 1U);
}

TEST(SharedIdentityTest, TooManyMasksJoinAllOfTheUnit) {
    std::vector<UnitId> ids;
    for (std::uint32_t i = 0; i <= most_masks_of_unit; ++i) {
        ids.push_back({0, i, {i << 16, i + 1}});
    }
    ids.push_back({0, 20, {0xffff0000}});
    ids.push_back({1, 19, {0xffff0000}});
    EXPECT_EQ(joined(ids, 21).size(), 20 - most_masks_of_unit) << "the one without a mask, too";
    EXPECT_EQ(joined({{0, 0, {1 << 16, 1}}, {0, 1, {2 << 16, 2}}}, 2).size(), 2U);
}

TEST(SharedIdentityTest, WhatIsJoinedIsWhatComparingEachPairJoins) {
    for (unsigned seed = 0; seed < 500; ++seed) {
        std::mt19937 random(seed);
        constexpr std::uint32_t masks[] = {0, 0x3, 0x30, 0x81};
        std::vector<UnitId> ids;
        for (std::uint32_t device = 0; device < 24; ++device) {
            ids.push_back({static_cast<std::uint32_t>(random() % 2),
                           device,
                           {static_cast<std::uint32_t>(random() % 256), masks[random() % 4]}});
        }
        std::vector<std::size_t> expected(24);
        std::iota(expected.begin(), expected.end(), 0U);
        for (std::size_t round = 0; round < 24; ++round) {
            for (const UnitId& one : ids) {
                for (const UnitId& other : ids) {
                    if (one.unit == other.unit &&
                        ((one.id.id ^ other.id.id) & ~one.id.ignored_bits & ~other.id.ignored_bits) == 0) {
                        expected[one.device] = std::min(expected[one.device], expected[other.device]);
                    }
                }
            }
        }
        for (const Containment& containment : joined(ids, 24)) {
            for (const std::size_t device : containment.devices) {
                ASSERT_EQ(expected[device], containment.devices.front()) << "seed " << seed;
            }
        }
    }
}

}  // namespace
}  // namespace guestmem::dma
