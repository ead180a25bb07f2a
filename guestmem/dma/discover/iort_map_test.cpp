// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/iort_map.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <random>

namespace guestmem::dma {
namespace {

using ::testing::HasSubstr;

constexpr std::size_t plenty = 10'000;

struct Found {
    std::uint32_t id = 0;
    std::uint32_t node = 0;
    friend bool operator==(const Found&, const Found&) = default;
};

/// One id, by looking through the mappings as the kernel does.
std::optional<Found> look_up(const std::vector<IortMapping>& mappings, std::uint32_t id) {
    std::optional<Found> provisional;
    for (const IortMapping& mapping : mappings) {
        if (mapping.output_node == 0) continue;
        if (mapping.is_single) return Found{mapping.output_base, mapping.output_node};
        if (mapping.is_past_the_end() || id < mapping.input_base || id > mapping.last()) continue;
        if (provisional && id != mapping.input_base) continue;
        const Found found{mapping.output_base + (id - mapping.input_base), mapping.output_node};
        if (mapping.count_minus_1 == 0 || id != mapping.last()) return found;
        if (provisional) return found;
        provisional = found;
    }
    return provisional;
}

std::optional<Found> look_up(const std::vector<IortPiece>& pieces, std::uint32_t id) {
    std::optional<Found> found;
    for (const IortPiece& piece : pieces) {
        if (id < piece.first || id > piece.last) continue;
        EXPECT_FALSE(found) << "two pieces have the id " << id;
        found = Found{piece.is_shared ? piece.output_base : piece.output_base + (id - piece.first),
                      piece.output_node};
    }
    return found;
}

std::vector<IortPiece> pieces_of(const std::vector<IortMapping>& mappings, TableFacts& facts) {
    std::size_t unordered = plenty;
    return iort_pieces(mappings, SingleMapping::is_allowed, unordered, facts);
}

IortMapping mapping(std::uint32_t first, std::uint32_t count_minus_1, std::uint32_t output,
                    std::uint32_t node = 48) {
    return {.input_base = first, .count_minus_1 = count_minus_1, .output_base = output, .output_node = node};
}

TEST(IortMapTest, PiecesAreWhatTheKernelFindsForEachId) {
    for (unsigned seed = 0; seed < 3000; ++seed) {
        SCOPED_TRACE(seed);
        std::mt19937 random{seed};
        const auto below = [&](std::uint32_t limit) { return static_cast<std::uint32_t>(random() % limit); };
        std::vector<IortMapping> mappings;
        std::uint32_t next = 0;
        for (std::uint32_t count = 1 + below(8); count > 0; --count) {
            // Half of the lists go on where the last one ended, right or one too early.
            const std::uint32_t first = seed % 2 == 0 ? below(60) : next;
            IortMapping one = mapping(first, below(8), below(1000), below(20) == 0 ? 0 : 1 + below(3));
            one.is_single = below(25) == 0;
            next = one.last() + below(2);
            mappings.push_back(one);
        }
        TableFacts facts{Source::iort, 1000};
        const auto pieces = pieces_of(mappings, facts);
        EXPECT_TRUE(std::ranges::is_sorted(pieces, {}, &IortPiece::first));
        for (std::uint32_t id = 0; id < 80; ++id) ASSERT_EQ(look_up(pieces, id), look_up(mappings, id)) << id;
    }
}

TEST(IortMapTest, ACountInsteadOfCountMinus1IsMendedAtEachSeamAndSaid) {
    TableFacts facts{Source::iort, 1000};
    const auto pieces = pieces_of({mapping(0, 0x100, 0), mapping(0x100, 0xfeff, 0x5000)}, facts);
    ASSERT_EQ(pieces.size(), 2U);
    EXPECT_EQ(pieces[0].last, 0xffU);
    EXPECT_EQ(pieces[1].first, 0x100U);
    EXPECT_EQ(pieces[1].last, 0xffffU);
    EXPECT_EQ(pieces[1].output_base, 0x5000U);
    ASSERT_EQ(facts.so_far().complaints.size(), 1U);
    EXPECT_THAT(facts.so_far().complaints[0].text, HasSubstr("0x100"));
}

TEST(IortMapTest, WhatCannotBeUsedIsAComplaint) {
    TableFacts facts{Source::iort, 1000};
    IortMapping single = mapping(0, 0, 7);
    single.is_single = true;
    std::size_t unordered = plenty;
    EXPECT_TRUE(iort_pieces({mapping(0, 1, 0, 0), mapping(1, 0xffffffff, 0), single},
                            SingleMapping::is_an_error, unordered, facts)
                    .empty());
    EXPECT_EQ(facts.so_far().complaints.size(), 3U);
}

TEST(IortMapTest, AllIdsAreARangeAndNotPastTheEnd) {
    TableFacts facts{Source::iort, 1000};
    const auto pieces = pieces_of({mapping(0, 0xffffffff, 0)}, facts);
    ASSERT_EQ(pieces.size(), 1U);
    EXPECT_EQ(pieces[0].last, 0xffffffff);
    EXPECT_TRUE(facts.so_far().complaints.empty());
}

TEST(IortMapTest, MappingsInNoOrderAreUsedUpToTheLimit) {
    for (const std::size_t limit : {2U, 1U}) {
        TableFacts facts{Source::iort, 1000};
        std::size_t unordered = limit;
        const auto pieces =
            iort_pieces({mapping(8, 1, 0), mapping(0, 1, 0)}, SingleMapping::is_allowed, unordered, facts);
        EXPECT_EQ(pieces.size(), limit == 2 ? 2U : 0U);
        EXPECT_EQ(facts.so_far().complaints.size(), limit == 2 ? 0U : 1U);
    }
}

}  // namespace
}  // namespace guestmem::dma
