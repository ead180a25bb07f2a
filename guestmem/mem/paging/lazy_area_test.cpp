// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/lazy_area.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace guestmem {
namespace {

TEST(SettledPages, AgreeWithAModel) {
    constexpr unsigned seed = 99;
    std::mt19937_64 random{seed};
    for (const std::uint64_t count : {1U, 63U, 64U, 65U, 200U, 1000U}) {
        SettledPages pages{count};
        std::vector<bool> model(count);
        for (int turn = 0; turn < 200; ++turn) {
            const std::uint64_t first = random() % count;
            const PageRun run{.first = first,
                              .count = random() % std::min<std::uint64_t>(count - first + 1, 90)};
            std::uint64_t added = 0;
            if (turn % 2 == 0) {
                for (std::uint64_t page = run.first; page < run.behind(); ++page) {
                    if (!model[page]) ++added;
                    model[page] = true;
                }
                EXPECT_EQ(pages.add(run), added);
            }
            PageRun missing{.first = run.first};
            while (missing.first < run.behind() && model[missing.first]) ++missing.first;
            while (missing.behind() < run.behind() && !model[missing.behind()]) ++missing.count;
            EXPECT_EQ(pages.next_missing(run), missing) << "seed " << seed << " of " << count;
            EXPECT_EQ(pages.contains(first), model[first]);
            EXPECT_EQ(pages.is_full(), std::ranges::find(model, false) == model.end());
        }
        pages.add({.first = 0, .count = count});
        EXPECT_TRUE(pages.is_full());
    }
}

TEST(SettledPages, KnowTheMissingOnesAroundAPage) {
    SettledPages pages{100};
    pages.add({.first = 10, .count = 2});
    pages.add({.first = 70, .count = 1});
    EXPECT_EQ(pages.missing_around(40, {.first = 0, .count = 100}), (PageRun{.first = 12, .count = 58}));
    EXPECT_EQ(pages.missing_around(40, {.first = 38, .count = 8}), (PageRun{.first = 38, .count = 8}));
    EXPECT_EQ(pages.missing_around(71, {.first = 64, .count = 16}), (PageRun{.first = 71, .count = 9}));
}

TEST(LazyArea, KnowsWhichPagesShowAPieceOfTheImage) {
    const LazyArea area{.part = {.offset_bytes = 8 * page_size_bytes, .size_bytes = 4 * page_size_bytes},
                        .mapping = Mapping::create_anonymous({.size_bytes = 4 * page_size_bytes}).value(),
                        .settled = SettledPages{4}};
    const auto pages = [](std::uint64_t first, std::uint64_t count) {
        return ImagePart{.offset_bytes = first * page_size_bytes, .size_bytes = count * page_size_bytes};
    };
    EXPECT_EQ(area.overlap(pages(0, 8)).count, 0U);
    EXPECT_EQ(area.overlap(pages(12, 8)).count, 0U);
    EXPECT_EQ(area.overlap(pages(0, 100)), area.all());
    EXPECT_EQ(area.overlap(pages(7, 2)), (PageRun{.first = 0, .count = 1}));
    EXPECT_EQ(area.overlap(pages(10, 9)), (PageRun{.first = 2, .count = 2}));
    EXPECT_EQ(area.image_offset(1), 9 * page_size_bytes);
    EXPECT_EQ(area.overlap(area.bytes({.first = 1, .count = 2})), (PageRun{.first = 1, .count = 2}));
    const std::byte elsewhere{};
    EXPECT_EQ(area.overlap({&elsewhere, 1}).count, 0U);
}

}  // namespace
}  // namespace guestmem
