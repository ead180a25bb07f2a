// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/layout.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <utility>

namespace guestmem {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

using RegionPtr = std::shared_ptr<const Region>;

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t top = 0xffff'ffff'ffff'ffff;

/// A region without memory: layouts look at addresses only.
RegionPtr device(std::string name, std::uint64_t base, std::uint64_t size_bytes = page) {
    return Region::create({.name = std::move(name),
                           .base = GuestAddress{base},
                           .size_bytes = size_bytes,
                           .kind = RegionKind::device})
        .value();
}

Result<std::shared_ptr<const MemoryMap>> freeze(const std::vector<RegionPtr>& regions,
                                                std::uint64_t granule_bytes = page) {
    Layout layout{{.granule_bytes = granule_bytes}};
    for (const RegionPtr& one : regions) layout.add(one);
    return std::move(layout).freeze();
}

std::string refusal_of(const std::vector<RegionPtr>& regions, std::uint64_t granule_bytes = page) {
    const auto map = freeze(regions, granule_bytes);
    return map ? "taken" : map.error().message();
}

TEST(Layout, OfNothingIsAnEmptyMap) {
    const auto map = freeze({}).value();
    EXPECT_TRUE(map->regions().empty());
    EXPECT_EQ(map->last(), std::nullopt);
    EXPECT_EQ(map->memory_bytes(), 0U);
}

TEST(Layout, TakesRegionsInAnyOrderAndOrdersThemByAddress) {
    std::vector<RegionPtr> regions;
    for (std::uint64_t i = 0; i < 64; ++i) regions.push_back(device("r", i * 2 * page));
    const std::vector<RegionPtr> ordered = regions;
    constexpr std::uint32_t seed = 5;
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937 random{seed};
    for (int turn = 0; turn < 50; ++turn) {
        std::ranges::shuffle(regions, random);
        const auto map = freeze(regions).value();
        EXPECT_TRUE(std::ranges::equal(map->regions(), ordered));
    }
}

TEST(Layout, NeighborsDoNotOverlap) {
    EXPECT_EQ(refusal_of({device("a", 0), device("b", page), device("c", 2 * page)}), "taken");
}

TEST(Layout, AnOverlapNamesBothRegionsAndWhere) {
    EXPECT_EQ(
        refusal_of({device("high", 3 * page, 2 * page), device("low", 0, 4 * page)}),
        "layout: regions 'low' (0x0 to 0x3fff) and 'high' (0x3000 to 0x4fff) overlap from 0x3000 to 0x3fff");
    EXPECT_EQ(
        refusal_of({device("a", page), device("b", page)}),
        "layout: regions 'a' (0x1000 to 0x1fff) and 'b' (0x1000 to 0x1fff) overlap from 0x1000 to 0x1fff");
    EXPECT_EQ(freeze({device("a", 0), device("b", 0)}).error().code(), Errc::invalid_argument);
}

TEST(Layout, TheSameRegionTwiceOverlapsItself) {
    const RegionPtr one = device("one", 0);
    EXPECT_THAT(refusal_of({one, one}),
                HasSubstr("regions 'one' (0x0 to 0xfff) and 'one' (0x0 to 0xfff) overlap"));
}

TEST(Layout, AnOverlapOfOneByteIsAnOverlap) {
    EXPECT_EQ(refusal_of({device("a", 0, 10), device("b", 10, 1)}, 1), "taken");
    EXPECT_THAT(refusal_of({device("a", 0, 10), device("b", 9, 1)}, 1), HasSubstr("overlap from 0x9 to 0x9"));
}

TEST(Layout, ARegionInsideAnotherIsFoundAlsoBehindASmallerOne) {
    const std::string refusal =
        refusal_of({device("large", 0, 16 * page), device("first", page), device("second", 8 * page)});
    EXPECT_THAT(refusal, HasSubstr("'large' (0x0 to 0xffff) and 'first'"));
    EXPECT_THAT(refusal, HasSubstr("'large' (0x0 to 0xffff) and 'second'"));
    EXPECT_THAT(refusal, Not(HasSubstr("'first' (0x1000 to 0x1fff) and 'second'")));
}

TEST(Layout, ARegionMayEndAtTheLastAddressAndOverlapThere) {
    EXPECT_EQ(refusal_of({device("low", 0), device("high", top - page + 1)}), "taken");
    EXPECT_EQ(refusal_of({device("a", top - page + 1), device("b", top - 2 * page + 1, 2 * page)}),
              "layout: regions 'b' (0xffffffffffffe000 to 0xffffffffffffffff) and 'a' (0xfffffffffffff000 to "
              "0xffffffffffffffff) overlap from 0xfffffffffffff000 to 0xffffffffffffffff");
}

TEST(Layout, BasesAndSizesAreWholeGranules) {
    EXPECT_EQ(refusal_of({device("r", 0x1001)}),
              "layout: region 'r' (0x1001 to 0x2000): its base is not a multiple of 4096");
    EXPECT_EQ(refusal_of({device("r", 0x1000, 0x1001)}),
              "layout: region 'r' (0x1000 to 0x2000): its size 4097 is not a multiple of 4096");
    EXPECT_EQ(refusal_of({device("r", 0x20'0000, 0x1000)}, 0x20'0000),
              "layout: region 'r' (0x200000 to 0x200fff): its size 4096 is not a multiple of 2097152");
    EXPECT_EQ(refusal_of({device("r", 0x1001, 0x1001)}, 1), "taken");
    EXPECT_EQ(freeze({}, 1).value()->granule_bytes(), 1U);
}

TEST(Layout, AGranuleIsAPowerOfTwo) {
    EXPECT_EQ(refusal_of({}, 0), "layout: the granule 0 is not a power of two; give 1, or 4096");
    EXPECT_EQ(refusal_of({}, 4095), "layout: the granule 4095 is not a power of two; give 1, or 4096");
    EXPECT_EQ(refusal_of({}, std::uint64_t{1} << 63), "taken");
}

TEST(Layout, TellsAllProblemsAtOnceOneALine) {
    const std::string refusal =
        refusal_of({device("b", 0x800, page), device("a", 0, page), device("c", 4 * page, 100)});
    EXPECT_EQ(refusal,
              "layout: region 'b' (0x800 to 0x17ff): its base is not a multiple of 4096\n"
              "layout: region 'c' (0x4000 to 0x4063): its size 100 is not a multiple of 4096\n"
              "layout: regions 'a' (0x0 to 0xfff) and 'b' (0x800 to 0x17ff) overlap from 0x800 to 0xfff");
}

TEST(Layout, ManyProblemsAreCounted) {
    std::vector<RegionPtr> regions;
    for (std::uint64_t i = 0; i < 16; ++i) regions.push_back(device("r", i * 2 * page + 1));
    const std::string sixteen = refusal_of(regions);
    EXPECT_EQ(std::ranges::count(sixteen, '\n'), 15);
    EXPECT_THAT(sixteen, Not(HasSubstr("more")));
    for (std::uint64_t i = 16; i < 20; ++i) regions.push_back(device("r", i * 2 * page + 1));
    EXPECT_TRUE(refusal_of(regions).ends_with("\nand 4 more"));
}

TEST(Layout, TakesAsManyRegionsAsAnIndexAndNotOneMore) {
    std::vector<RegionPtr> regions;
    for (std::uint64_t i = 0; i < LookupIndex::max_regions; ++i) regions.push_back(device("r", i * page));
    EXPECT_EQ(freeze(regions).value()->regions().size(), LookupIndex::max_regions);
    regions.push_back(device("r", LookupIndex::max_regions * page));
    const auto map = freeze(regions);
    ASSERT_FALSE(map);
    EXPECT_EQ(map.error().code(), Errc::exhausted);
    EXPECT_EQ(map.error().message(), "layout: 32769 regions; a map has at most 32768");
}

TEST(Layout, FromAMapHasItsRegionsAndItsGranule) {
    const auto map = freeze({device("a", 0, 64), device("b", 64, 64)}, 64).value();
    Layout layout = Layout::from(*map);
    layout.add(device("c", 128, 64));
    const auto larger = std::move(layout).freeze().value();
    EXPECT_EQ(larger->regions().size(), 3U);
    EXPECT_EQ(larger->regions()[0], map->regions()[0]);
    EXPECT_EQ(larger->granule_bytes(), 64U);
}

TEST(LayoutDeathTest, NoRegionIsOurOwnBug) { EXPECT_DEATH(Layout{}.add(nullptr), "check failed"); }

/// A model: a layout is good when no two of its regions overlap, pair by pair.
TEST(Layout, AgreesWithAComparisonOfAllPairs) {
    for (std::uint32_t seed = 0; seed < 2000; ++seed) {
        std::mt19937 random{seed};
        std::vector<RegionPtr> regions;
        for (std::uint64_t i = random() % 6; i > 0; --i) {
            const std::uint64_t size_bytes = 1 + random() % 4;
            const std::uint64_t base = random() % 16;
            const bool is_high = random() % 2 == 0;
            regions.push_back(device("r", is_high ? top - base - size_bytes + 1 : base, size_bytes));
        }
        bool is_good = true;
        for (std::size_t i = 0; i < regions.size(); ++i)
            for (std::size_t j = 0; j < i; ++j)
                is_good = is_good && !regions[i]->range().overlaps(regions[j]->range());
        ASSERT_EQ(freeze(regions, 1).has_value(), is_good) << "seed " << seed;
    }
}

}  // namespace
}  // namespace guestmem
