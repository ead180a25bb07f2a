// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/part_set.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

namespace guestmem {
namespace {

TEST(PartSet, AnEmptyOneMissesAll) {
    const PartSet set;
    EXPECT_EQ(set.first_missing({4096, 8192}), (ImagePart{4096, 8192}));
    EXPECT_FALSE(set.contains_any({0, std::uint64_t{1} << 46}));
    EXPECT_EQ(set.first_missing({4096, 0}), std::nullopt);
}

TEST(PartSet, PartsThatTouchAreOne) {
    PartSet set;
    ASSERT_TRUE(set.add({8192, 4096}) && set.add({0, 4096}) && set.add({4096, 4096}));
    EXPECT_EQ(set.count_parts(), 1U);
    EXPECT_EQ(set.size_bytes(), 12288U);
    EXPECT_EQ(set.first_missing({0, 12288}), std::nullopt);
    EXPECT_EQ(set.first_missing({0, 12289}), (ImagePart{12288, 1}));
}

TEST(PartSet, AgreesWithAListOfPagesOnRandomParts) {
    const std::uint64_t seed = 20260821;
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random{seed};
    for (int round = 0; round < 50; ++round) {
        PartSet set;
        constexpr std::uint64_t size = 200;
        std::vector<bool> model(size, false);
        for (int turn = 0; turn < 60; ++turn) {
            const std::uint64_t begin = random() % size;
            const ImagePart part{begin, random() % std::min<std::uint64_t>(size - begin + 1, 12)};
            bool has_any = false;
            std::uint64_t first = begin;
            while (first < begin + part.size_bytes && model[first]) ++first;
            std::uint64_t behind = first;
            while (behind < begin + part.size_bytes && !model[behind]) ++behind;
            for (std::uint64_t i = begin; i < begin + part.size_bytes; ++i) has_any = has_any || model[i];

            ASSERT_EQ(set.contains_any(part), has_any);
            const auto missing = set.first_missing(part);
            ASSERT_EQ(missing.has_value(), behind > first);
            if (missing) {
                ASSERT_EQ(*missing, (ImagePart{first, behind - first}));
            }

            ASSERT_TRUE(set.add(part));
            for (std::uint64_t i = begin; i < begin + part.size_bytes; ++i) model[i] = true;
            ASSERT_EQ(set.size_bytes(), static_cast<std::uint64_t>(std::ranges::count(model, true)));
        }
    }
}

TEST(PartSet, TakesAsManyPiecesAsTheLimitAndNotOneMore) {
    PartSet set;
    for (std::uint64_t i = 0; i < PartSet::max_parts; ++i) ASSERT_TRUE(set.add({i * 8192, 4096}));
    const auto refused = set.add({PartSet::max_parts * 8192, 4096});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::exhausted);
    EXPECT_TRUE(set.add({4096, 4096})) << "one that makes two into one has room";
    EXPECT_TRUE(set.add({PartSet::max_parts * 8192, 4096}));
}

}  // namespace
}  // namespace guestmem
