// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/memory_map.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "guestmem/mem/layout.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t top = 0xffff'ffff'ffff'ffff;

using RegionPtr = std::shared_ptr<const Region>;
using MapPtr = std::shared_ptr<const MemoryMap>;

static_assert(!std::is_copy_constructible_v<MemoryMap>);

RegionPtr region(std::string name, std::uint64_t base, std::uint64_t size_bytes,
                 RegionKind kind = RegionKind::ram) {
    const bool has_memory = kind != RegionKind::device;
    return Region::create({.name = std::move(name),
                           .base = GuestAddress{base},
                           .size_bytes = size_bytes,
                           .kind = kind,
                           .memory = has_memory
                                         ? HostMemory::create_anonymous({.size_bytes = size_bytes}).value()
                                         : nullptr})
        .value();
}

MapPtr map_of(const std::vector<RegionPtr>& regions, std::uint64_t granule_bytes = page) {
    Layout layout{{.granule_bytes = granule_bytes}};
    for (const RegionPtr& one : regions) layout.add(one);
    return std::move(layout).freeze().value();
}

GuestRange range(std::uint64_t base, std::uint64_t size_bytes) {
    return GuestRange::create(GuestAddress{base}, size_bytes).value();
}

TEST(MemoryMap, FindsTheRegionOfAnAddressADevicesToo) {
    const RegionPtr low = region("low", 0, 2 * page);
    const RegionPtr device = region("uart", 4 * page, page, RegionKind::device);
    const MapPtr map = map_of({low, device});
    EXPECT_EQ(map->find_region(GuestAddress{0}), low);
    EXPECT_EQ(map->find_region(GuestAddress{2 * page - 1}), low);
    EXPECT_EQ(map->find_region(GuestAddress{2 * page}), nullptr);
    EXPECT_EQ(map->find_region(GuestAddress{4 * page}), device);
    EXPECT_EQ(map->find_region(GuestAddress{5 * page}), nullptr);
    EXPECT_EQ(map->find_region(GuestAddress::max()), nullptr);
}

TEST(MemoryMap, TellsItsLastAddressAndItsBytesOfMemory) {
    const MapPtr map = map_of({region("a", 0, 2 * page), region("rom", 4 * page, page, RegionKind::rom),
                               region("uart", 16 * page, page, RegionKind::device)});
    EXPECT_EQ(map->last(), GuestAddress{17 * page - 1});
    EXPECT_EQ(map->memory_bytes(), 3 * page);
    EXPECT_EQ(map->granule_bytes(), page);
}

TEST(MemoryMap, ARegionMayEndAtTheLastAddress) {
    const RegionPtr high = region("high", top - page + 1, page);
    const MapPtr map = map_of({high});
    EXPECT_EQ(map->last(), GuestAddress::max());
    EXPECT_EQ(map->find_region(GuestAddress::max()), high);
    EXPECT_EQ(map->find_region(GuestAddress{0}), nullptr);
    EXPECT_EQ(map->find_run(GuestAddress::max(), Access::write)->size_bytes, 1U);
    EXPECT_TRUE(map->check_range(range(top - page + 1, page), Access::write));
    const auto below = map->check_range(range(top - page, page + 1), Access::read);
    ASSERT_FALSE(below);
    EXPECT_EQ(below.error().address(), top - page);
}

TEST(MemoryMap, ARunReachesToTheEndOfItsRegion) {
    const RegionPtr first = region("first", 0, page);
    const RegionPtr second = region("second", page, page);
    const MapPtr map = map_of({first, second});
    const auto run = map->find_run(GuestAddress{page - 8}, Access::write);
    ASSERT_TRUE(run);
    EXPECT_EQ(run->host, first->host_base() + page - 8);
    EXPECT_EQ(run->size_bytes, 8U);
    EXPECT_EQ(run->tracker, &first->dirty());
    EXPECT_EQ(run->offset, page - 8);
}

struct Refusal {
    AccessReason reason;
    std::uint64_t address;
    friend bool operator==(const Refusal&, const Refusal&) = default;
    friend std::ostream& operator<<(std::ostream& out, const Refusal& refusal) {
        return out << to_string(refusal.reason) << " at " << refusal.address;
    }
};

Refusal check(const MemoryMap& map, std::uint64_t base, std::uint64_t size_bytes, Access access) {
    const auto checked = map.check_range(range(base, size_bytes), access);
    if (checked) return {AccessReason::none, 0};
    EXPECT_EQ(checked.error().access(), access);
    EXPECT_EQ(checked.error().count_done(), 0U) << "nothing was accessed";
    return {checked.error().reason(), checked.error().address()};
}

TEST(MemoryMap, ACheckNamesTheFirstByteThatMayNotBeAccessed) {
    const MapPtr map =
        map_of({region("a", 0, 2 * page), region("b", 2 * page, page),
                region("rom", 3 * page, page, RegionKind::rom),
                region("fixed", 4 * page, page, RegionKind::read_only),
                region("uart", 8 * page, page, RegionKind::device), region("c", 16 * page, page)});
    const Refusal none{AccessReason::none, 0};
    EXPECT_EQ(check(*map, 0, 3 * page, Access::write), none);
    EXPECT_EQ(check(*map, 0, 5 * page, Access::read), none);
    EXPECT_EQ(check(*map, 3 * page - 1, 1, Access::write), none);
    EXPECT_EQ(check(*map, 0, 3 * page + 1, Access::write), (Refusal{AccessReason::read_only, 3 * page}));
    EXPECT_EQ(check(*map, 4 * page, 1, Access::write), (Refusal{AccessReason::read_only, 4 * page}));
    EXPECT_EQ(check(*map, page, 5 * page, Access::read), (Refusal{AccessReason::hole, 5 * page}));
    EXPECT_EQ(check(*map, 8 * page + 5, 8, Access::read), (Refusal{AccessReason::device, 8 * page + 5}));
    EXPECT_EQ(check(*map, 17 * page - 1, 2, Access::read), (Refusal{AccessReason::out_of_range, 17 * page}));
    EXPECT_EQ(check(*map, top, 1, Access::read), (Refusal{AccessReason::out_of_range, top}));
    EXPECT_EQ(check(*map_of({}), 0, 1, Access::read), (Refusal{AccessReason::out_of_range, 0}));
}

TEST(MemoryMap, RegionsOfAFewBytesHaveRunsToo) {
    const MapPtr map =
        map_of({region("one", 3, 1), region("seven", 4, 7), region("rom", 11, 2, RegionKind::rom)}, 1);
    EXPECT_EQ(map->find_run(GuestAddress{3}, Access::write)->size_bytes, 1U);
    EXPECT_EQ(map->find_run(GuestAddress{5}, Access::write)->size_bytes, 6U);
    EXPECT_EQ(check(*map, 3, 8, Access::write), (Refusal{AccessReason::none, 0}));
    EXPECT_EQ(check(*map, 3, 10, Access::read), (Refusal{AccessReason::none, 0}));
    EXPECT_EQ(check(*map, 3, 9, Access::write), (Refusal{AccessReason::read_only, 11}));
    EXPECT_EQ(check(*map, 2, 2, Access::write), (Refusal{AccessReason::hole, 2}));
}

TEST(MemoryMap, WithARegionMoreSharesTheOthers) {
    const RegionPtr a = region("a", 0, page);
    const RegionPtr b = region("b", 4 * page, page);
    const MapPtr map = map_of({b});
    const MapPtr more = map->with(a).value();
    EXPECT_THAT(more->regions(), ElementsAre(a, b));
    EXPECT_THAT(map->regions(), ElementsAre(b));
}

TEST(MemoryMap, WithWhatDoesNotFitIsAnErrorAndTheMapStays) {
    const MapPtr map = map_of({region("a", 0, 2 * page)});
    const auto overlap = map->with(region("b", page, page));
    ASSERT_FALSE(overlap);
    EXPECT_EQ(overlap.error().message(),
              "layout: regions 'a' (0x0 to 0x1fff) and 'b' (0x1000 to 0x1fff) overlap from 0x1000 to 0x1fff");
    EXPECT_THAT(map->with(region("odd", 0x4001, page)).error().message(),
                HasSubstr("not a multiple of 4096"));
    EXPECT_EQ(map->regions().size(), 1U);
}

TEST(MemoryMap, WithoutARegionLeavesAHole) {
    const RegionPtr a = region("a", 0, page);
    const RegionPtr b = region("b", page, page);
    const MapPtr map = map_of({a, b});
    const MapPtr less = map->without(range(0, page)).value();
    EXPECT_THAT(less->regions(), ElementsAre(b));
    EXPECT_EQ(less->find_region(GuestAddress{0}), nullptr);
    EXPECT_TRUE(less->without(range(page, page)).value()->regions().empty());
}

TEST(MemoryMap, WhatIsTakenAwayHasToBeThereExactly) {
    const MapPtr map = map_of({region("main", page, 2 * page)});
    const auto nothing = map->without(range(8 * page, page));
    ASSERT_FALSE(nothing);
    EXPECT_EQ(nothing.error().code(), Errc::not_found);
    EXPECT_EQ(nothing.error().message(), "remove region 0x8000 to 0x8fff: nothing is mapped there");
    EXPECT_EQ(
        map->without(range(page, page)).error().message(),
        "remove region 0x1000 to 0x1fff: region 'main' there is 0x1000 to 0x2fff; give exactly the range of "
        "one region");
    EXPECT_THAT(map->without(range(2 * page, page)).error().message(),
                HasSubstr("remove region 0x2000 to 0x2fff: region 'main' there is 0x1000 to 0x2fff; give"));
    EXPECT_FALSE(map->without(range(0, page)));
    EXPECT_FALSE(map_of({})->without(range(0, page)));
    EXPECT_EQ(map->with_replaced(range(8 * page, page), region("r", 0, page)).error().message(),
              "replace region 0x8000 to 0x8fff: nothing is mapped there");
}

TEST(MemoryMap, WhatLiesInsideOfARangeIsNamedWhereverItBegins) {
    const MapPtr map = map_of({region("low", page, page), region("high", 4 * page, page)});
    EXPECT_EQ(
        map->without(range(0, 3 * page)).error().message(),
        "remove region 0x0 to 0x2fff: region 'low' there is 0x1000 to 0x1fff; give exactly the range of one "
        "region");
    EXPECT_THAT(map->without(range(0, 8 * page)).error().message(),
                HasSubstr("region 'low' there is 0x1000"));
    EXPECT_THAT(map->without(range(2 * page, 3 * page)).error().message(),
                HasSubstr("region 'high' there is 0x4000"));
    EXPECT_THAT(map->with_replaced(range(3 * page, 2 * page), region("r", 0, page)).error().message(),
                HasSubstr("replace region 0x3000 to 0x4fff: region 'high' there is 0x4000"));
    EXPECT_THAT(map->without(range(2 * page, 2 * page)).error().message(),
                HasSubstr("nothing is mapped there"));
}

TEST(MemoryMap, AReplacementMayHaveAnotherSizeAndAnotherPlace) {
    const RegionPtr a = region("a", 0, page);
    const RegionPtr b = region("b", 4 * page, page);
    const MapPtr map = map_of({a, b});
    const RegionPtr larger = region("larger", 2 * page, 4 * page);
    EXPECT_THAT(map->with_replaced(range(4 * page, page), larger).value()->regions(), ElementsAre(a, larger));
    const RegionPtr above = region("above", 16 * page, page);
    EXPECT_THAT(map->with_replaced(range(0, page), above).value()->regions(), ElementsAre(b, above));
    const auto overlap = map->with_replaced(range(0, page), region("large", 0, 5 * page));
    ASSERT_FALSE(overlap);
    EXPECT_THAT(overlap.error().message(), HasSubstr("'large' (0x0 to 0x4fff) and 'b' (0x4000 to 0x4fff)"));
}

TEST(MemoryMap, ChangedMapsKeepTheGranule) {
    const MapPtr map = map_of({region("a", 0, 64)}, 64);
    const MapPtr more = map->with(region("b", 64, 64)).value();
    EXPECT_EQ(more->granule_bytes(), 64U);
    EXPECT_EQ(more->without(range(0, 64)).value()->granule_bytes(), 64U);
    EXPECT_EQ(more->with_replaced(range(0, 64), region("c", 128, 64)).value()->granule_bytes(), 64U);
}

TEST(MemoryMap, HoldsItsRegionsUntilItIsGone) {
    RegionPtr a = region("a", 0, page);
    const std::weak_ptr<const Region> watch = a;
    MapPtr map = map_of({std::move(a)});
    a = nullptr;
    const MapPtr other = map->with(region("b", page, page)).value();
    map = nullptr;
    EXPECT_FALSE(watch.expired());
    const MapPtr less = other->without(range(0, page)).value();
    EXPECT_FALSE(watch.expired());
    EXPECT_EQ(less->regions().size(), 1U);
}

/// A model: an array that says for each of a few bytes what is there.
TEST(MemoryMap, ChecksOfRandomRangesAgreeWithAnArrayOfBytes) {
    constexpr std::size_t size = 64;
    for (std::uint32_t seed = 0; seed < 300; ++seed) {
        SCOPED_TRACE(::testing::Message() << "seed " << seed);
        std::mt19937 random{seed};
        std::vector<RegionPtr> regions;
        std::vector<AccessReason> reads(size, AccessReason::hole);
        std::vector<AccessReason> writes(size, AccessReason::hole);
        std::uint64_t base = random() % 8;
        while (base < size) {
            const std::uint64_t size_bytes = std::min<std::uint64_t>(1 + random() % 16, size - base);
            const auto kind = static_cast<RegionKind>(random() % 4);
            regions.push_back(region("r", base, size_bytes, kind));
            for (std::uint64_t i = base; i < base + size_bytes; ++i) {
                reads[i] = kind == RegionKind::device ? AccessReason::device : AccessReason::none;
                writes[i] = kind == RegionKind::ram      ? AccessReason::none
                            : kind == RegionKind::device ? AccessReason::device
                                                         : AccessReason::read_only;
            }
            base += size_bytes + (random() % 2 == 0 ? 0 : random() % 8);
        }
        const MapPtr map = map_of(regions, 1);
        const std::uint64_t end = regions.empty() ? 0 : regions.back()->range().last().value() + 1;
        for (std::uint64_t first = 0; first < size; ++first) {
            for (std::uint64_t count = 1; count <= size - first; count += 1 + random() % 4) {
                for (const Access access : {Access::read, Access::write}) {
                    Refusal wanted{AccessReason::none, 0};
                    const auto& bytes = access == Access::read ? reads : writes;
                    for (std::uint64_t i = 0; i < count && wanted.reason == AccessReason::none; ++i) {
                        const AccessReason reason =
                            first + i < end ? bytes[first + i] : AccessReason::out_of_range;
                        if (reason != AccessReason::none) wanted = {reason, first + i};
                    }
                    ASSERT_EQ(check(*map, first, count, access), wanted) << first << "+" << count;
                }
            }
        }
    }
}

}  // namespace
}  // namespace guestmem
