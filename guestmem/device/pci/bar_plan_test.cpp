// SPDX-License-Identifier: Apache-2.0
#include "guestmem/device/pci/bar_plan.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace guestmem::pci {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

BarRequest request(BarKind kind, std::uint64_t size_bytes) {
    return {.name = "card", .bar = {.kind = kind, .size_bytes = size_bytes}};
}

TEST(BarPlan, TheLargestComesFirstAndEachIsAMultipleOfItsSize) {
    const std::vector<BarRequest> requests{request(BarKind::memory32, 4096),
                                           request(BarKind::memory32, 1 << 20),
                                           request(BarKind::memory32, 256), request(BarKind::io, 32)};
    const auto plan = plan_bars(
        requests, {.memory32 = AddressWindow{0xe000'1000, 0xe02f'ffff}, .ports = AddressWindow{1, 99}}, {},
        {});
    EXPECT_THAT(plan.value(), ElementsAre(0xe000'1000, 0xe010'0000, 0xe000'2000, 32));
}

TEST(BarPlan, SixtyFourBitsGoHighWhileThereIsRoom) {
    const std::vector<BarRequest> requests{request(BarKind::memory64, 1 << 20),
                                           request(BarKind::memory64, 1 << 20)};
    const AddressWindows windows{.memory32 = AddressWindow{0xe000'0000, 0xe0ff'ffff},
                                 .memory64 = AddressWindow{0x1'0000'0000, 0x1'000f'ffff}};
    EXPECT_THAT(plan_bars(requests, windows, {}, {}).value(), ElementsAre(0x1'0000'0000, 0xe000'0000));
}

TEST(BarPlan, WhatIsTakenIsPassedOver) {
    const std::vector<BarRequest> requests{request(BarKind::memory32, 4096)};
    const std::vector<AddressWindow> taken{
        {0xf800'2000, 0xf800'2000}, {0xf800'0000, 0xf800'0fff}, {0xf800'1004, 0xf800'1007}};
    const auto plan = plan_bars(requests, {.memory32 = AddressWindow{0xf800'0000, 0xf8ff'ffff}}, taken, {});
    EXPECT_THAT(plan.value(), ElementsAre(0xf800'3000));
}

TEST(BarPlan, WhatDoesNotFitIsNamedWithItsWindow) {
    const std::vector<BarRequest> one{request(BarKind::memory64, std::uint64_t{1} << 30)};
    const auto small = plan_bars(one, {.memory32 = AddressWindow{0xe000'0000, 0xefff'ffff}}, {}, {});
    ASSERT_FALSE(small);
    EXPECT_EQ(small.error().code(), Errc::exhausted);
    EXPECT_THAT(small.error().message(), HasSubstr("card of 1073741824 bytes"));
    EXPECT_THAT(small.error().message(), HasSubstr("0xe0000000 to 0xefffffff"));
    const std::vector<BarRequest> io{request(BarKind::io, 4)};
    const auto none = plan_bars(io, {}, {}, {});
    ASSERT_FALSE(none);
    EXPECT_THAT(none.error().message(), HasSubstr("no window"));
    EXPECT_FALSE(plan_bars({}, {.memory32 = AddressWindow{0, 0x1'0000'0000}}, {}, {}));
    EXPECT_FALSE(plan_bars({}, {.memory64 = AddressWindow{2, 1}}, {}, {}));
}

TEST(BarPlan, ZeroAndTheTopAreNoPlaces) {
    const std::vector<BarRequest> one{request(BarKind::memory32, 4096)};
    EXPECT_THAT(plan_bars(one, {.memory32 = AddressWindow{0, 0x1fff}}, {}, {}).value(), ElementsAre(0x1000));
    EXPECT_FALSE(plan_bars(one, {.memory32 = AddressWindow{0xffff'f000, 0xffff'ffff}}, {}, {}));
    const std::vector<BarRequest> wide{request(BarKind::memory64, 4096)};
    const AddressWindows top{.memory64 = AddressWindow{0xffff'ffff'ffff'f000, ~std::uint64_t{0}}};
    EXPECT_FALSE(plan_bars(wide, top, {}, {}));
}

TEST(BarPlan, RandomPlansNeverOverlap) {
    std::random_device device;
    const auto seed = device();
    SCOPED_TRACE(seed);
    std::mt19937_64 random{seed};
    int count_plans = 0;
    for (int round = 0; round < 300; ++round) {
        std::vector<BarRequest> requests;
        std::vector<AddressWindow> all;
        for (std::uint64_t i = random() % 20; i != 0; --i)
            requests.push_back(request(BarKind::memory32, std::uint64_t{1} << (4 + random() % 10)));
        for (std::uint64_t i = random() % 8; i != 0; --i) {
            const std::uint64_t first = random() % 0x20000;
            all.push_back({first, first + random() % 0x800});
        }
        const auto plan = plan_bars(requests, {.memory32 = AddressWindow{0, 0x1'ffff}}, all, {});
        if (!plan) continue;
        ++count_plans;
        for (std::size_t i = 0; i < requests.size(); ++i) {
            const std::uint64_t first = (*plan)[i];
            const std::uint64_t last = first + (requests[i].bar.size_bytes - 1);
            ASSERT_TRUE(is_decodable(requests[i].bar, first) && last <= 0x1'ffff);
            for (const AddressWindow& one : all) ASSERT_TRUE(last < one.first || one.last < first);
            all.push_back({first, last});
        }
    }
    EXPECT_GT(count_plans, 100);
}

}  // namespace
}  // namespace guestmem::pci
