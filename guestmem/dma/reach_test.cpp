// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/reach.hpp"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace guestmem::dma {
namespace {

constexpr std::uint64_t page = 4096;
constexpr Permission read_write{true, true};
constexpr Permission read_only{true, false};
constexpr Permission write_only{false, true};

std::vector<VmMemory> one_memory(std::uint64_t pages = 64) {
    return {{.name = "ram", .at = 0x10000, .size_bytes = pages * page}};
}

GrantedRange range(std::uint64_t offset, std::uint64_t size, Permission permission, std::size_t memory = 0) {
    return {.memory = memory, .offset_bytes = offset, .size_bytes = size, .permission = permission};
}

GrantedDevice device(std::vector<GrantedRange> ranges) {
    return {.name = "d", .reaches_all = false, .ranges = std::move(ranges)};
}

TEST(ReachTest, ADeviceThatReachesAllHasOneMappingPerMemory) {
    const std::vector<VmMemory> memory{
        {.name = "low", .at = 0, .size_bytes = 16 * page},
        {.name = "rom", .at = 16 * page, .size_bytes = page, .is_writable = false}};
    const Reach reach = reach_of(memory, {.name = "d"}, page);
    EXPECT_EQ(reach.mappings,
              (std::vector<ReachMapping>{{0, 16 * page, read_write, 0}, {16 * page, page, read_only, 1}}));
    EXPECT_EQ(reach.grown_bytes, 0U);
    EXPECT_FALSE(reach.ragged_memory);
}

TEST(ReachTest, NeighborsWithEqualPermissionsAreOneMapping) {
    const Reach reach = reach_of(
        one_memory(),
        device({range(page, page, read_only), range(0, page, read_only), range(2 * page, page, read_write)}),
        page);
    EXPECT_EQ(reach.mappings, (std::vector<ReachMapping>{{0x10000, 2 * page, read_only, 0},
                                                         {0x10000 + 2 * page, page, read_write, 0}}));
    EXPECT_FALSE(reach.first_conflict);
}

TEST(ReachTest, NeighborsInTwoMemoriesStayTwoMappings) {
    const std::vector<VmMemory> memory{{.name = "a", .at = 0, .size_bytes = page},
                                       {.name = "b", .at = page, .size_bytes = page}};
    EXPECT_EQ(reach_of(memory, {.name = "d"}, page).mappings.size(), 2U);
}

TEST(ReachTest, ARangeGrowsToWholePagesAndTheGrowthIsCounted) {
    const Reach reach = reach_of(one_memory(), device({range(100, 8, read_write)}), page);
    EXPECT_EQ(reach.mappings, (std::vector<ReachMapping>{{0x10000, page, read_write, 0}}));
    EXPECT_EQ(reach.grown_bytes, page - 8);
}

TEST(ReachTest, RangesThatShareAPageHaveThePermissionsOfBothAndItIsSaid) {
    const Reach reach =
        reach_of(one_memory(), device({range(0, 8, read_only), range(100, 8, write_only)}), page);
    EXPECT_EQ(reach.mappings, (std::vector<ReachMapping>{{0x10000, page, read_write, 0}}));
    EXPECT_FALSE(reach.first_conflict);
    ASSERT_TRUE(reach.first_grown_conflict);
}

TEST(ReachTest, RangesThatOverlapWithOtherPermissionsAreAConflictWhereTheyDo) {
    const Reach reach = reach_of(
        one_memory(), device({range(0, 4 * page, read_only), range(2 * page, page, read_write)}), page);
    EXPECT_EQ(reach.first_conflict, 0x10000 + 2 * page);
    EXPECT_FALSE(reach.first_grown_conflict);
    EXPECT_EQ(reach.mappings, (std::vector<ReachMapping>{{0x10000, 2 * page, read_only, 0},
                                                         {0x10000 + 2 * page, page, read_write, 0},
                                                         {0x10000 + 3 * page, page, read_only, 0}}));
}

TEST(ReachTest, AMemoryThatIsNoWholeGranulesIsNotLeft) {
    constexpr std::uint64_t granule = 65536;
    const std::vector<VmMemory> memory{{.name = "ram", .at = page, .size_bytes = 32 * page}};
    const Reach reach = reach_of(memory, {.name = "d"}, granule);
    EXPECT_EQ(reach.ragged_memory, 0U);
    EXPECT_EQ(reach.mappings, (std::vector<ReachMapping>{{granule, granule, read_write, 0}}));
    const Reach none = reach_of(std::vector<VmMemory>{{.name = "ram", .at = page, .size_bytes = page}},
                                {.name = "d"}, granule);
    EXPECT_TRUE(none.mappings.empty());
    EXPECT_EQ(none.ragged_memory, 0U);
}

TEST(ReachTest, MemoryUpToTheLastAddressIsMapped) {
    const std::vector<VmMemory> memory{
        {.name = "top", .at = UINT64_MAX - (2 * page - 1), .size_bytes = 2 * page}};
    const Reach reach =
        reach_of(memory, device({range(0, 2 * page, read_only), range(page, page, read_only)}), page);
    EXPECT_EQ(reach.mappings, (std::vector<ReachMapping>{{memory[0].at, 2 * page, read_only, 0}}));
}

/// Byte by byte, at a scale where that is possible: a page has 4 bytes.
TEST(ReachTest, EveryPageHasWhatTheRangesOnItGrantAndNoOther) {
    constexpr std::uint64_t granule = 16;
    std::mt19937 random{7};
    const auto below = [&](std::uint64_t limit) {
        return std::uniform_int_distribution<std::uint64_t>{0, limit - 1}(random);
    };
    for (int round = 0; round < 3000; ++round) {
        const std::vector<VmMemory> memory{{.name = "a", .at = 64, .size_bytes = 128},
                                           {.name = "b", .at = 192, .size_bytes = 64}};
        std::vector<GrantedRange> ranges;
        std::map<std::uint64_t, unsigned> expected;
        bool is_conflict = false;
        std::map<std::uint64_t, unsigned> asked;
        for (std::uint64_t i = below(6); i > 0; --i) {
            const std::size_t in = below(2);
            const std::uint64_t offset = below(memory[in].size_bytes);
            const std::uint64_t size = 1 + below(memory[in].size_bytes - offset);
            const unsigned kind = 1 + static_cast<unsigned>(below(3));
            ranges.push_back(range(offset, size, {(kind & 1) != 0, (kind & 2) != 0}, in));
            for (std::uint64_t at = memory[in].at + offset; at < memory[in].at + offset + size; ++at) {
                expected[at / granule] |= kind;
                if (asked.contains(at) && asked[at] != kind) is_conflict = true;
                asked.try_emplace(at, kind);
            }
        }
        const Reach reach = reach_of(memory, device(ranges), granule);
        std::map<std::uint64_t, unsigned> found;
        std::uint64_t before = 0;
        for (const ReachMapping& mapping : reach.mappings) {
            ASSERT_GE(mapping.iova, before);
            before = mapping.iova + mapping.size_bytes;
            for (std::uint64_t at = mapping.iova; at < before; at += granule)
                found[at / granule] =
                    (mapping.permission.can_read ? 1U : 0U) | (mapping.permission.can_write ? 2U : 0U);
        }
        ASSERT_EQ(found, expected) << "round " << round;
        ASSERT_EQ(reach.first_conflict.has_value(), is_conflict) << "round " << round;
        ASSERT_EQ(reach.grown_bytes, expected.size() * granule - asked.size()) << "round " << round;
    }
}

TEST(ReachTest, LargePagesAreUsedWhereAddressAndBackingAllowIt) {
    constexpr std::uint64_t mib = 1 << 20;
    constexpr std::uint64_t sizes = page | 2 * mib | 1024 * mib;
    EXPECT_EQ(count_page_entries(0, 1024 * mib, sizes, 1024 * mib), 1U);
    EXPECT_EQ(count_page_entries(0, 1024 * mib, sizes, 2 * mib), 512U);
    EXPECT_EQ(count_page_entries(0, 4 * mib, sizes, page), 1024U);
    // 1 MiB of small pages on either side of one large page.
    EXPECT_EQ(count_page_entries(mib, 4 * mib, sizes, 1024 * mib), 256U + 1U + 256U);
    EXPECT_EQ(count_page_entries(page, page, sizes, 1024 * mib), 1U);
    EXPECT_EQ(count_page_entries(2 * mib - page, 2 * page, sizes, 2 * mib), 2U);
}

/// Greedy at each address: the largest page that begins there and fits.
TEST(ReachTest, PageEntriesAreThoseOfAWalkFromTheFirstToTheLastByte) {
    std::mt19937 random{11};
    const auto below = [&](std::uint64_t limit) {
        return std::uniform_int_distribution<std::uint64_t>{0, limit - 1}(random);
    };
    for (int round = 0; round < 2000; ++round) {
        const std::uint64_t sizes = 1 | (below(2) << 2) | (below(2) << 4) | (below(2) << 5);
        const std::uint64_t backing = std::uint64_t{1} << below(7);
        const std::uint64_t first = below(200);
        const std::uint64_t size = 1 + below(300);
        std::uint64_t count = 0;
        for (std::uint64_t at = first; at < first + size; ++count) {
            std::uint64_t chosen = 1;
            for (std::uint64_t p = 1; p <= backing; p <<= 1)
                if ((sizes & p) != 0 && at % p == 0 && at + p <= first + size) chosen = p;
            at += chosen;
        }
        ASSERT_EQ(count_page_entries(first, size, sizes, backing), count)
            << first << " " << size << " " << sizes << " " << backing;
    }
}

}  // namespace
}  // namespace guestmem::dma
