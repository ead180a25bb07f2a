// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/template_layers.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <utility>
#include <vector>

#include "guestmem/mem/template/testing/chain.hpp"

namespace guestmem {
namespace {

using testing::Chain;
using testing::edit_pages;
using ::testing::ElementsAre;

constexpr std::uint64_t page = page_size_bytes;
using Piece = std::pair<std::size_t, ImagePart>;

ImagePart part_of(std::uint64_t first, std::uint64_t count) { return {first * page, count * page}; }

std::vector<Piece> pieces_of(const Template& of, ImagePart part) {
    std::vector<Piece> all;
    const auto layers = of.layers();
    EXPECT_TRUE(for_each_piece(layers, part, [&](std::size_t layer, ImagePart piece) -> Result<void> {
        all.emplace_back(layer, piece);
        return {};
    }));
    return all;
}

TEST(TemplateLayers, OfATemplateWithoutAParentAreOnePiece) {
    const Chain chain;
    const auto base = chain.open(0);
    EXPECT_THAT(pieces_of(*base, part_of(3, 40)), ElementsAre(Piece{0, part_of(3, 40)}));
    EXPECT_TRUE(pieces_of(*base, {5 * page, 0}).empty());
}

TEST(TemplateLayers, GiveAPageOfTheFirstLayerThatHasIt) {
    Chain chain;
    chain.add(1);
    chain.add(2);
    PageRuns older;
    older.add(0, 10);
    older.add(20, 2);
    edit_pages(chain.path_of(1), older);
    PageRuns newer;
    newer.add(2, 3);
    newer.add(9, 11);
    edit_pages(chain.path_of(2), newer);
    const auto all = chain.open(2);
    EXPECT_THAT(pieces_of(*all, part_of(0, 30)),
                ElementsAre(Piece{1, part_of(0, 2)}, Piece{0, part_of(2, 3)}, Piece{1, part_of(5, 4)},
                            Piece{0, part_of(9, 11)}, Piece{1, part_of(20, 2)}, Piece{2, part_of(22, 8)}));
    EXPECT_THAT(pieces_of(*all, part_of(4, 2)),
                ElementsAre(Piece{0, part_of(4, 1)}, Piece{1, part_of(5, 1)}));
    EXPECT_THAT(pieces_of(*all, part_of(21, 1)), ElementsAre(Piece{1, part_of(21, 1)}));
}

TEST(TemplateLayers, CoverAnyPartAsAModelDoes) {
    Chain chain;
    for (int number = 1; number <= 6; ++number) chain.add(number);
    const auto last = chain.open(6);
    const auto layers = last->layers();
    ASSERT_EQ(layers.size(), 7U);
    const auto layer_of = [&](std::uint64_t number) {
        std::size_t layer = 0;
        while (layers[layer]->own_pages() != nullptr && !layers[layer]->own_pages()->contains(number))
            ++layer;
        return layer;
    };
    std::mt19937 random{11};  // NOLINT: the same each time
    constexpr std::uint64_t count = Chain::image_bytes / page;
    for (int round = 0; round < 300; ++round) {
        const std::uint64_t first = random() % count;
        const std::uint64_t behind = first + 1 + random() % (count - first);
        std::uint64_t at = first;
        std::size_t before = layers.size();
        for (const auto& [layer, piece] : pieces_of(*last, part_of(first, behind - first))) {
            ASSERT_EQ(piece.offset_bytes, at * page) << "ascending, without gaps";
            ASSERT_NE(layer, before) << "neighbors are of different layers";
            before = layer;
            ASSERT_GT(piece.size_bytes, 0U);
            for (; at < (piece.offset_bytes + piece.size_bytes) / page; ++at)
                ASSERT_EQ(layer, layer_of(at)) << at;
        }
        ASSERT_EQ(at, behind);
    }
}

TEST(TemplateLayers, EndWithTheErrorOfTheVisitor) {
    Chain chain;
    chain.add(1);
    const auto opened = chain.open(1);
    int count = 0;
    const auto walked = for_each_piece(opened->layers(), {0, Chain::image_bytes},
                                       [&](std::size_t, ImagePart) -> Result<void> {
                                           if (++count == 3) return Error{Errc::io, "enough"};
                                           return {};
                                       });
    ASSERT_FALSE(walked);
    EXPECT_EQ(walked.error().message(), "enough");
    EXPECT_EQ(count, 3);
}

}  // namespace
}  // namespace guestmem
