// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/map_diff.hpp"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <utility>

#include "guestmem/mem/layout.hpp"
#include "guestmem/mem/testing/random_maps.hpp"

namespace guestmem {
namespace {

using testing::RandomMaps;

constexpr std::uint64_t page = 4096;

using RegionPtr = std::shared_ptr<const Region>;
using MapPtr = std::shared_ptr<const MemoryMap>;
using MemoryPtr = std::shared_ptr<const HostMemory>;

MemoryPtr some_memory(std::uint64_t count_pages = 4) {
    return HostMemory::create_anonymous({.size_bytes = count_pages * page}).value();
}

RegionPtr region(RegionOptions options) { return Region::create(std::move(options)).value(); }

RegionPtr ram(std::string name, std::uint64_t base, MemoryPtr memory) {
    return region({.name = std::move(name), .base = GuestAddress{base}, .memory = std::move(memory)});
}

MapPtr map_of(const std::vector<RegionPtr>& regions) {
    Layout layout;
    for (const RegionPtr& one : regions) layout.add(one);
    return std::move(layout).freeze().value();
}

TEST(MapDiff, OfAMapAndItselfIsEmpty) {
    const MapPtr map = map_of({ram("a", 0, some_memory()), ram("b", 16 * page, some_memory())});
    EXPECT_TRUE(diff_maps(*map, *map).is_empty());
    EXPECT_TRUE(diff_maps(*map_of({}), *map_of({})).is_empty());
}

TEST(MapDiff, FromAndToNothingListsAllInTheOrderOfAddresses) {
    const RegionPtr low = ram("low", 0, some_memory());
    const RegionPtr high = ram("high", 16 * page, some_memory());
    const MapPtr map = map_of({high, low});

    const MapDiff up = diff_maps(*map_of({}), *map);
    EXPECT_EQ(up.added, (std::vector{low, high}));
    EXPECT_TRUE(up.removed.empty());
    EXPECT_TRUE(up.changed.empty());

    const MapDiff down = diff_maps(*map, *map_of({}));
    EXPECT_EQ(down.removed, (std::vector{low, high}));
    EXPECT_TRUE(down.added.empty());
    EXPECT_FALSE(down.is_empty());
}

TEST(MapDiff, DoesNotListWhatBothMapsShare) {
    const RegionPtr kept = ram("kept", 16 * page, some_memory());
    const RegionPtr gone = ram("gone", 0, some_memory());
    const RegionPtr came = ram("came", 32 * page, some_memory());

    const MapDiff diff = diff_maps(*map_of({gone, kept}), *map_of({kept, came}));

    EXPECT_EQ(diff.removed, std::vector{gone});
    EXPECT_EQ(diff.added, std::vector{came});
    EXPECT_TRUE(diff.changed.empty());
}

TEST(MapDiff, TheSameBytesUnderAnotherNameAreAChange) {
    const MemoryPtr memory = some_memory();
    const RegionPtr before = ram("before", 0, memory);
    const RegionPtr after = ram("after", 0, memory);

    const MapDiff diff = diff_maps(*map_of({before}), *map_of({after}));

    ASSERT_EQ(diff.changed.size(), 1U);
    EXPECT_EQ(diff.changed[0].before, before);
    EXPECT_EQ(diff.changed[0].after, after);
    EXPECT_TRUE(diff.removed.empty());
    EXPECT_TRUE(diff.added.empty());
}

TEST(MapDiff, ReadOnlyMemoryThatBecomesRomIsAChange) {
    const MemoryPtr memory = some_memory();
    const RegionPtr before =
        region({.name = "r", .base = GuestAddress{0}, .kind = RegionKind::read_only, .memory = memory});
    const RegionPtr after =
        region({.name = "r", .base = GuestAddress{0}, .kind = RegionKind::rom, .memory = memory});

    const MapDiff diff = diff_maps(*map_of({before}), *map_of({after}));

    EXPECT_EQ(diff.changed.size(), 1U);
    EXPECT_TRUE(diff.removed.empty());
}

TEST(MapDiff, ADeviceUnderAnotherNameIsAChange) {
    const RegionOptions options{
        .name = "uart", .base = GuestAddress{0}, .size_bytes = page, .kind = RegionKind::device};
    const MapDiff diff = diff_maps(*map_of({region(options)}), *map_of({region(options)}));
    EXPECT_EQ(diff.changed.size(), 1U);
    EXPECT_TRUE(diff.removed.empty());
}

/// What KVM cannot do to a slot that exists, so the slot has to go first.
TEST(MapDiff, WhatAGuestWouldNoticeIsARemovalAndAnAddition) {
    const MemoryPtr memory = some_memory();
    const RegionPtr before = ram("r", 4 * page, memory);
    const GuestAddress base{4 * page};
    const std::vector<RegionOptions> others{
        {.name = "read-only", .base = base, .kind = RegionKind::read_only, .memory = memory},
        {.name = "device", .base = base, .size_bytes = 4 * page, .kind = RegionKind::device},
        {.name = "other bytes", .base = base, .memory = some_memory()},
        {.name = "smaller", .base = base, .size_bytes = 3 * page, .memory = memory},
        {.name = "other offset", .base = base, .memory = memory, .memory_offset_bytes = page},
    };
    for (const RegionOptions& options : others) {
        SCOPED_TRACE(options.name);
        const RegionPtr after = region(options);
        const MapDiff diff = diff_maps(*map_of({before}), *map_of({after}));
        EXPECT_EQ(diff.removed, std::vector{before});
        EXPECT_EQ(diff.added, std::vector{after});
        EXPECT_TRUE(diff.changed.empty());
    }
}

TEST(MapDiff, AMoveIsARemovalAndAnAddition) {
    const RegionPtr before = ram("r", 0, some_memory());
    const RegionPtr after = before->placed_at(GuestAddress{2 * page}).value();

    const MapDiff diff = diff_maps(*map_of({before}), *map_of({after}));

    EXPECT_EQ(diff.removed, std::vector{before});
    EXPECT_EQ(diff.added, std::vector{after});
}

TEST(MapDiff, HoldsTheRegionsThatNoMapHoldsAnyMore) {
    MapPtr before = map_of({ram("r", 0, some_memory())});
    const std::weak_ptr<const Region> gone = before->regions().front();
    {
        const MapDiff diff = diff_maps(*before, *map_of({}));
        before = nullptr;
        EXPECT_FALSE(gone.expired());
    }
    EXPECT_TRUE(gone.expired());
}

/// A model: whoever was told about the first map applies the lists in order, and refuses what KVM refuses.
class Told {
public:
    explicit Told(const MemoryMap& map) {
        for (const RegionPtr& one : map.regions()) regions_[one->range().base()] = one;
    }
    void apply(const MapDiff& diff) {
        for (const RegionPtr& one : diff.removed) {
            ASSERT_EQ(regions_.count(one->range().base()), 1U);
            EXPECT_EQ(regions_.at(one->range().base()), one);
            regions_.erase(one->range().base());
        }
        for (const ChangedRegion& change : diff.changed) {
            const RegionPtr& old = regions_.at(change.before->range().base());
            EXPECT_EQ(old, change.before);
            EXPECT_EQ(old->range(), change.after->range());
            EXPECT_EQ(old->host_base(), change.after->host_base());
            EXPECT_EQ(old->is_writable(), change.after->is_writable());
            EXPECT_EQ(old->is_memory(), change.after->is_memory());
            regions_[change.after->range().base()] = change.after;
        }
        for (const RegionPtr& one : diff.added) {
            for (const auto& [base, other] : regions_) EXPECT_FALSE(other->range().overlaps(one->range()));
            regions_[one->range().base()] = one;
        }
    }
    [[nodiscard]] std::vector<RegionPtr> regions() const {
        std::vector<RegionPtr> all;
        for (const auto& [base, one] : regions_) all.push_back(one);
        return all;
    }

private:
    std::map<GuestAddress, RegionPtr> regions_;
};

TEST(MapDiff, AppliedInItsOrderLeadsFromAnyMapToAnyOther) {
    std::size_t count_changed = 0;
    for (std::uint32_t seed = 0; seed < 2000; ++seed) {
        SCOPED_TRACE(::testing::Message() << "seed " << seed);
        RandomMaps maps{seed};
        const MapPtr before = maps.next();
        const MapPtr after = maps.next();
        const MapDiff diff = diff_maps(*before, *after);

        Told told{*before};
        told.apply(diff);

        const std::vector<RegionPtr> wanted{after->regions().begin(), after->regions().end()};
        ASSERT_EQ(told.regions(), wanted);
        const std::set<RegionPtr> old{before->regions().begin(), before->regions().end()};
        for (const RegionPtr& one : diff.added) EXPECT_FALSE(old.contains(one));
        count_changed += diff.changed.size();
    }
    EXPECT_GT(count_changed, 0U);
}

}  // namespace
}  // namespace guestmem
