// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/cover_pieces.hpp"

#include <gtest/gtest.h>

#include <bitset>
#include <random>
#include <set>

namespace guestmem::dma {
namespace {

TEST(CoverPiecesTest, BlocksAreExactlyTheIdsOfTheRange) {
    for (std::uint32_t first = 0; first < 40; ++first) {
        for (std::uint32_t last = first; last < 70; ++last) {
            std::multiset<std::uint32_t> ids;
            for (const IdBlock& block : id_blocks(first, last)) {
                EXPECT_EQ(block.first & block.ignored_bits, 0U);
                for (std::uint32_t id = 0; id <= block.ignored_bits; ++id) ids.insert(block.first + id);
            }
            ASSERT_EQ(ids.size(), last - first + 1);
            ASSERT_EQ(*ids.begin(), first);
            ASSERT_EQ(*ids.rbegin(), last);
        }
    }
}

TEST(CoverPiecesTest, ARangeIsAtMost62Blocks) {
    EXPECT_EQ(id_blocks(1, 0xfffffffe).size(), 62U);
    const auto all = id_blocks(0, 0xffffffff);
    ASSERT_EQ(all.size(), 1U);
    EXPECT_EQ(all[0].ignored_bits, 0xffffffff);
    EXPECT_TRUE(id_blocks(5, 4).empty());
}

TEST(CoverPiecesTest, ClaimsAgreeWithAMapOfEachNumber) {
    for (unsigned seed = 0; seed < 200; ++seed) {
        SCOPED_TRACE(seed);
        std::mt19937 random{seed};
        Claims claims;
        std::bitset<256> model;
        for (int i = 0; i < 40; ++i) {
            const auto first = static_cast<std::uint32_t>(random() % 256);
            const std::uint32_t last =
                std::min<std::uint32_t>(255, first + static_cast<std::uint32_t>(random() % 30));
            std::bitset<256> got;
            for (const Piece& piece : claims.claim({first, last})) {
                ASSERT_LE(piece.first, piece.last);
                ASSERT_LE(piece.last, last);
                for (std::uint32_t at = piece.first; at <= piece.last; ++at) {
                    ASSERT_FALSE(got[at]);
                    got.set(at);
                }
            }
            std::bitset<256> range;
            for (std::uint32_t at = first; at <= last; ++at) range.set(at);
            ASSERT_EQ(got, range & ~model);
            model |= range;
        }
    }
}

TEST(CoverPiecesTest, ClaimsWorkAtTheEndsOfTheNumbers) {
    Claims claims;
    EXPECT_EQ(claims.claim({0xffffffff, 0xffffffff}).size(), 1U);
    EXPECT_EQ(claims.claim({0, 0}).size(), 1U);
    const auto rest = claims.claim({0, 0xffffffff});
    ASSERT_EQ(rest.size(), 1U);
    EXPECT_EQ(rest[0].first, 1U);
    EXPECT_EQ(rest[0].last, 0xfffffffe);
    EXPECT_TRUE(claims.claim({0, 0xffffffff}).empty());
}

TEST(CoverPiecesTest, AUnitIsNotBehindItself) {
    struct Case {
        std::uint16_t self;
        std::vector<PciRange> ranges;
        std::vector<std::uint32_t> ids;
    };
    for (const Case& one :
         {Case{0x18, {{0, 0x10, 0x17}, {0, 0x19, 0x1f}}, {100, 109}}, Case{0x10, {{0, 0x11, 0x1f}}, {101}},
          Case{0x1f, {{0, 0x10, 0x1e}}, {100}}, Case{0x20, {{0, 0x10, 0x1f}}, {100}}}) {
        SCOPED_TRACE(one.self);
        TableFacts facts{Source::viot, 0};
        CoverFact cover;
        cover.which = PciRange{0, 0x10, 0x1f};
        cover.identity.first_id = 100;
        ASSERT_TRUE(add_range_cover(facts, cover, PciAddress{0, one.self}));
        const auto& covers = facts.so_far().covers;
        ASSERT_EQ(covers.size(), one.ranges.size());
        for (std::size_t i = 0; i < covers.size(); ++i) {
            EXPECT_EQ(to_string(covers[i].which), to_string(Selector{one.ranges[i]}));
            EXPECT_EQ(covers[i].identity.first_id, one.ids[i]);
        }
    }
    TableFacts facts{Source::viot, 0};
    CoverFact only;
    only.which = PciRange{0, 8, 8};
    EXPECT_TRUE(add_range_cover(facts, only, PciAddress{0, 8}));
    EXPECT_TRUE(facts.so_far().covers.empty());
    EXPECT_TRUE(add_range_cover(facts, only, PciAddress{1, 8}));
    EXPECT_EQ(facts.so_far().covers.size(), 1U);
}

}  // namespace
}  // namespace guestmem::dma
