// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/dirty_pages.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

namespace guestmem {
namespace {

constexpr std::uint64_t whole_space = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint64_t gib = std::uint64_t{1} << 30;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool has_sanitizer = true;
#elif defined(__has_feature)
constexpr bool has_sanitizer = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool has_sanitizer = false;
#endif

DirtyPages pages_of(std::uint64_t size_bytes, std::uint64_t page_bytes = 4096) {
    return DirtyPages::create({.size_bytes = size_bytes, .page_bytes = page_bytes}).value();
}

// ---- the grid ----

TEST(PageGrid, TakesPowersOfTwoFrom64BytesToOneGibAsPages) {
    for (const std::uint64_t good : {min_dirty_page_bytes, std::uint64_t{4096}, max_dirty_page_bytes}) {
        const auto grid = PageGrid::create({.size_bytes = 1, .page_bytes = good});
        ASSERT_TRUE(grid) << good;
        EXPECT_EQ(grid->page_bytes(), good);
        EXPECT_EQ(grid->count_pages(), 1U);
    }
    for (const std::uint64_t bad :
         {std::uint64_t{0}, std::uint64_t{1}, min_dirty_page_bytes / 2, min_dirty_page_bytes - 1,
          min_dirty_page_bytes + 1, std::uint64_t{4095}, max_dirty_page_bytes - 1, max_dirty_page_bytes + 1,
          max_dirty_page_bytes * 2, std::uint64_t{1} << 63, whole_space}) {
        const auto grid = PageGrid::create({.size_bytes = 4096, .page_bytes = bad});
        ASSERT_FALSE(grid) << bad;
        EXPECT_EQ(grid.error().code(), Errc::invalid_argument);
    }
}

TEST(PageGrid, EndsAtTheMostPagesThatCanBeKept) {
    EXPECT_EQ(PageGrid::create({.size_bytes = max_dirty_pages * 64, .page_bytes = 64})->count_pages(),
              max_dirty_pages);
    const auto grid = PageGrid::create({.size_bytes = max_dirty_pages * 64 + 1, .page_bytes = 64});
    ASSERT_FALSE(grid);
    EXPECT_EQ(grid.error().code(), Errc::out_of_range);
    EXPECT_FALSE(PageGrid::create({.size_bytes = whole_space, .page_bytes = 4096}));
    EXPECT_EQ(PageGrid::create({.size_bytes = whole_space, .page_bytes = gib})->count_pages(),
              std::uint64_t{1} << 34);
}

TEST(PageGrid, OfNoBytesIsAnError) {
    const auto grid = PageGrid::create({.size_bytes = 0});
    ASSERT_FALSE(grid);
    EXPECT_EQ(grid.error().code(), Errc::invalid_argument);
}

TEST(PageGrid, RoundsAnOddSizeUpToPagesAndWords) {
    const PageGrid grid = PageGrid::create({.size_bytes = 64 * 4096 + 1}).value();
    EXPECT_EQ(grid.count_pages(), 65U);
    EXPECT_EQ(grid.count_words(), 2U);
    EXPECT_EQ(grid.last_word_mask(), 1U);
    const PageGrid full = PageGrid::create({.size_bytes = 64 * 4096}).value();
    EXPECT_EQ(full.count_words(), 1U);
    EXPECT_EQ(full.last_word_mask(), ~std::uint64_t{0});
}

// ---- runs of bits ----

TEST(ForEachBitRun, FindsWhatANaiveLoopFinds) {
    const std::uint64_t seed = std::random_device{}();
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random{seed};
    for (int turn = 0; turn < 3'000; ++turn) {
        std::vector<std::uint64_t> words(1 + random() % 5);
        for (std::uint64_t& word : words) switch (random() % 5) {
                case 0: word = 0; break;
                case 1: word = ~std::uint64_t{0}; break;
                case 2: word = std::uint64_t{1} << (random() % 64); break;
                case 3: word = ~std::uint64_t{0} << (random() % 64); break;
                default: word = random(); break;
            }
        const std::uint64_t count_bits = random() % (words.size() * 64 + 1);

        std::vector<std::pair<std::uint64_t, std::uint64_t>> expected;
        for (std::uint64_t bit = 0; bit < count_bits; ++bit) {
            if ((words[bit / 64] >> (bit % 64) & 1) == 0) continue;
            if (!expected.empty() && expected.back().first + expected.back().second == bit)
                ++expected.back().second;
            else
                expected.emplace_back(bit, 1);
        }
        std::vector<std::pair<std::uint64_t, std::uint64_t>> found;
        for_each_bit_run(words, count_bits,
                         [&](std::uint64_t first, std::uint64_t count) { found.emplace_back(first, count); });
        ASSERT_EQ(found, expected) << "turn " << turn << ", " << count_bits << " bits";
    }
}

// ---- marks ----

class DirtyPagesOf : public ::testing::TestWithParam<std::uint64_t> {};
INSTANTIATE_TEST_SUITE_P(PageSizes, DirtyPagesOf,
                         ::testing::Values(std::uint64_t{64}, std::uint64_t{4096}, std::uint64_t{65536},
                                           std::uint64_t{2} << 20, gib));

TEST_P(DirtyPagesOf, MarksThePagesThatARangeTouches) {
    const std::uint64_t page = GetParam();
    const std::uint64_t size = 130 * page;
    struct Case {
        std::uint64_t offset, count, first, pages;
    };
    for (const Case& c : {Case{0, 1, 0, 1},
                          Case{0, page, 0, 1},
                          Case{0, page + 1, 0, 2},
                          Case{page - 1, 1, 0, 1},
                          Case{page - 1, 2, 0, 2},
                          Case{page, 1, 1, 1},
                          Case{63 * page, page, 63, 1},
                          Case{63 * page, page + 1, 63, 2},
                          Case{64 * page, 64 * page, 64, 64},
                          Case{1, 130 * page, 0, 130},
                          Case{size - 1, 1, 129, 1},
                          Case{size - 1, 2, 129, 1},
                          Case{size - 1, whole_space, 129, 1},
                          Case{0, whole_space, 0, 130},
                          Case{128 * page - 1, 2, 127, 2},
                          Case{1, 0, 0, 0},
                          Case{size, 1, 0, 0},
                          Case{size + 1, 1, 0, 0},
                          Case{whole_space, 1, 0, 0},
                          Case{whole_space, whole_space, 0, 0},
                          Case{size, whole_space - size + 2, 0, 0}}) {
        SCOPED_TRACE(::testing::Message() << "offset " << c.offset << " count " << c.count);
        DirtyPages pages = pages_of(size, page);
        pages.mark(c.offset, c.count);
        EXPECT_EQ(pages.count_dirty(), c.pages);
        EXPECT_EQ(pages.is_any_dirty(), c.pages != 0);
        for (std::uint64_t i = 0; i < 130; ++i)
            EXPECT_EQ(pages.is_dirty(i * page), i >= c.first && i - c.first < c.pages) << i;
    }
}

TEST(DirtyPages, TheLastPageIsClippedToTheRegion) {
    DirtyPages pages = pages_of(2 * 4096 + 1);
    pages.mark(2 * 4096, 4096);
    EXPECT_EQ(pages.runs(), (std::vector{DirtyRun{2 * 4096, 1}}));
    pages.mark(4096, 1);
    EXPECT_EQ(pages.runs(), (std::vector{DirtyRun{4096, 4097}}));
    EXPECT_TRUE(pages.is_dirty(2 * 4096));
    EXPECT_FALSE(pages.is_dirty(2 * 4096 + 1));
    EXPECT_FALSE(pages.is_dirty(whole_space));
}

TEST(PageGrid, FindsThePagesOfARangeUpToTheEndOfAllNumbers) {
    const PageGrid grid = PageGrid::create({.size_bytes = whole_space, .page_bytes = gib}).value();
    const std::uint64_t last = grid.count_pages() - 1;
    EXPECT_EQ(grid.pages_of(whole_space - 1, whole_space), (PageSpan{last, last}));
    EXPECT_EQ(grid.pages_of(whole_space - gib, 1), (PageSpan{last - 1, last - 1}));
    EXPECT_EQ(grid.pages_of(whole_space - gib, 2), (PageSpan{last - 1, last}));
    EXPECT_EQ(grid.pages_of(0, whole_space), (PageSpan{0, last}));
    EXPECT_EQ(grid.pages_of(1, whole_space), (PageSpan{0, last}));
    EXPECT_EQ(grid.pages_of(whole_space, 1), std::nullopt);
    EXPECT_EQ(grid.pages_of(0, 0), std::nullopt);
}

TEST(PageSpan, HasTheBitsOfItsFirstAndLastWord) {
    const PageSpan one{64, 64};
    EXPECT_EQ(one.first_word(), 1U);
    EXPECT_EQ(one.last_word(), 1U);
    EXPECT_EQ(one.first_bits() & one.last_bits(), 1U);
    const PageSpan long_one{63, 191};
    EXPECT_EQ(long_one.first_word(), 0U);
    EXPECT_EQ(long_one.first_bits(), std::uint64_t{1} << 63);
    EXPECT_EQ(long_one.last_word(), 2U);
    EXPECT_EQ(long_one.last_bits(), ~std::uint64_t{0});
}

TEST(DirtyPages, OfNoRegionHaveNoPages) {
    DirtyPages none;
    none.mark(0, whole_space);
    none.clear();
    none.merge(pages_of(4096));
    EXPECT_EQ(none.count_pages(), 0U);
    EXPECT_EQ(none.count_dirty(), 0U);
    EXPECT_FALSE(none.is_dirty(0));
    EXPECT_TRUE(none.runs().empty());
    EXPECT_TRUE(none.to_ranges(GuestAddress::max())->empty());
}

TEST(DirtyPages, AreMovedAndNotCopied) {
    static_assert(!std::is_copy_constructible_v<DirtyPages>);
    DirtyPages from = pages_of(gib);
    from.mark(4096, 1);
    DirtyPages to{std::move(from)};
    EXPECT_EQ(from.count_pages(), 0U);  // NOLINT(bugprone-use-after-move)
    EXPECT_FALSE(from.is_dirty(4096));
    EXPECT_TRUE(to.is_dirty(4096));
    from = std::move(to);
    EXPECT_TRUE(from.is_dirty(4096));
}

TEST(DirtyPages, ThatDoNotFitIntoMemoryAreAnError) {
    if (has_sanitizer) GTEST_SKIP() << "SKIPPED: a sanitizer ends the program when calloc fails";
    const auto words = detail::create_zeroed_words(std::uint64_t{1} << 43);
    ASSERT_FALSE(words);
    EXPECT_EQ(words.error().code(), Errc::exhausted);
}

std::uint64_t resident_bytes() {
    std::uint64_t total = 0;
    std::uint64_t resident = 0;
    std::ifstream{"/proc/self/statm"} >> total >> resident;
    return resident * 4096;
}

TEST(DirtyPages, OfTwelveTebibytesCostMemoryOnlyWhereTheyAreDirty) {
    if (has_sanitizer) GTEST_SKIP() << "SKIPPED: a sanitizer keeps books about every byte that is read";
    const std::uint64_t before = resident_bytes();
    DirtyPages pages = pages_of(12 * 1024 * gib);
    pages.mark(5 * 1024 * gib, 1);
    pages.clear();
    const std::uint64_t after = resident_bytes();
    EXPECT_EQ(pages.count_pages(), std::uint64_t{12} << 28);
    // clear() reads all of its 384 MiB, and the kernel answers with its one page of zeros.
    EXPECT_LT(after - std::min(before, after), 16U << 20);
}

// ---- a value against its model ----

struct Model {
    std::uint64_t size_bytes;
    std::uint64_t page_bytes;
    std::vector<bool> pages;

    Model(std::uint64_t size, std::uint64_t page)
        : size_bytes(size), page_bytes(page), pages((size - 1) / page + 1) {}

    [[nodiscard]] std::uint64_t page_size_of(std::uint64_t page) const {
        return std::min(page_bytes, size_bytes - page * page_bytes);
    }
    void mark(std::uint64_t offset, std::uint64_t count) {
        for (std::uint64_t page = 0; page < pages.size(); ++page) {
            const std::uint64_t first = page * page_bytes;
            const std::uint64_t last = first + page_size_of(page) - 1;
            // offset + count may be past 2^64.
            if (count != 0 && offset <= last && (offset >= first || first - offset < count))
                pages[page] = true;
        }
    }
    void merge(const Model& other) {
        for (std::uint64_t page = 0; page < other.pages.size(); ++page)
            if (other.pages[page]) mark(page * other.page_bytes, other.page_size_of(page));
    }
    [[nodiscard]] std::vector<DirtyRun> runs() const {
        std::vector<DirtyRun> found;
        for (std::uint64_t page = 0; page < pages.size(); ++page) {
            if (!pages[page]) continue;
            if (page != 0 && pages[page - 1])
                found.back().size_bytes += page_size_of(page);
            else
                found.push_back({page * page_bytes, page_size_of(page)});
        }
        return found;
    }
};

std::uint64_t some_offset(std::mt19937_64& random, std::uint64_t size_bytes) {
    switch (random() % 8) {
        case 0: return random();
        case 1: return size_bytes - 1;
        case 2: return size_bytes;
        default: return random() % size_bytes;
    }
}

std::uint64_t some_count(std::mt19937_64& random, std::uint64_t size_bytes) {
    switch (random() % 8) {
        case 0: return random();
        case 1: return 0;
        case 2: return random() % size_bytes;
        default: return random() % 300;
    }
}

TEST(DirtyPages, DoWhatANaiveModelDoes) {
    const std::uint64_t seed = std::random_device{}();
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random{seed};
    for (int turn = 0; turn < 60; ++turn) {
        const std::uint64_t size = 1 + random() % 50'000;
        const std::uint64_t page = std::uint64_t{64} << (random() % 6);
        DirtyPages pages = pages_of(size, page);
        Model model{size, page};
        SCOPED_TRACE(::testing::Message() << size << " bytes, pages of " << page);
        for (int step = 0; step < 60; ++step) {
            if (const auto kind = random() % 10; kind == 0) {
                pages.clear();
                model = Model{size, page};
            } else if (kind <= 2) {
                const std::uint64_t other_size = 1 + random() % 50'000;
                const std::uint64_t other_page = std::uint64_t{64} << (random() % 6);
                DirtyPages other = pages_of(other_size, other_page);
                Model other_model{other_size, other_page};
                for (int i = 0; i < 4; ++i) {
                    const std::uint64_t offset = some_offset(random, other_size);
                    const std::uint64_t count = some_count(random, other_size);
                    other.mark(offset, count);
                    other_model.mark(offset, count);
                }
                pages.merge(other);
                model.merge(other_model);
            } else {
                const std::uint64_t offset = some_offset(random, size);
                const std::uint64_t count = some_count(random, size);
                pages.mark(offset, count);
                model.mark(offset, count);
            }
            ASSERT_EQ(pages.runs(), model.runs()) << "step " << step;
            ASSERT_EQ(pages.count_dirty(), static_cast<std::uint64_t>(std::ranges::count(model.pages, true)));
            ASSERT_EQ(pages.words().back() & ~pages.grid().last_word_mask(), 0U);
        }
    }
}

// ---- merging ----

TEST(DirtyPages, ACoarsePageIsDirtyWhenAnyFinePageInItIs) {
    DirtyPages fine = pages_of(4 * 65536, 4096);
    fine.mark(65536 + 5 * 4096, 1);
    DirtyPages coarse = pages_of(4 * 65536, 65536);
    coarse.merge(fine);
    EXPECT_EQ(coarse.runs(), (std::vector{DirtyRun{65536, 65536}}));
}

TEST(DirtyPages, AFinePageIsDirtyWhenTheCoarsePageAroundItIs) {
    DirtyPages coarse = pages_of(3 * 65536 + 100, 65536);
    coarse.mark(65536, 1);
    coarse.mark(3 * 65536, 1);
    DirtyPages fine = pages_of(3 * 65536 + 100, 4096);
    fine.merge(coarse);
    EXPECT_EQ(fine.runs(), (std::vector{DirtyRun{65536, 65536}, DirtyRun{3 * 65536, 100}}));
    EXPECT_EQ(fine.count_dirty(), 17U);
}

TEST(DirtyPages, WhatLiesPastTheEndOfAMergeIsLeftOut) {
    DirtyPages large = pages_of(200 * 4096);
    large.mark(0, whole_space);
    for (const std::uint64_t count_pages : {1U, 63U, 64U, 65U, 127U, 128U, 129U}) {
        DirtyPages small = pages_of(count_pages * 4096);
        small.merge(large);
        EXPECT_EQ(small.count_dirty(), count_pages);
        EXPECT_EQ(small.runs(), (std::vector{DirtyRun{0, count_pages * 4096}}));
        DirtyPages back = pages_of(200 * 4096);
        back.merge(small);
        EXPECT_EQ(back.count_dirty(), count_pages);
    }
}

TEST(DirtyPages, AreEqualWhenRegionPageSizeAndPagesAre) {
    DirtyPages a = pages_of(8192);
    EXPECT_EQ(a, pages_of(8192));
    EXPECT_FALSE(a == pages_of(8191));
    EXPECT_FALSE(a == pages_of(8192, 64));
    a.mark(0, 1);
    EXPECT_FALSE(a == pages_of(8192));
}

// ---- addresses ----

TEST(DirtyPages, BecomeRangesOfTheAddressSpaceOfTheirBase) {
    DirtyPages pages = pages_of(10 * 4096);
    pages.mark(4096, 8192);
    pages.mark(9 * 4096, 1);
    const auto ranges = pages.to_ranges(GuestAddress{0x100000}).value();
    ASSERT_EQ(ranges.size(), 2U);
    EXPECT_EQ(ranges[0], GuestRange::create(GuestAddress{0x101000}, 0x2000));
    EXPECT_EQ(ranges[1], GuestRange::create(GuestAddress{0x109000}, 0x1000));
    const auto io_ranges = pages.to_ranges(IoAddress{0}).value();
    static_assert(std::is_same_v<decltype(io_ranges), const std::vector<IoRange>>);
    EXPECT_EQ(io_ranges[1].last(), IoAddress{0x9fff});
}

TEST(DirtyPages, OfARegionAtTheVeryEndEndWithTheLastAddress) {
    DirtyPages pages = pages_of(8192);
    pages.mark(4096, 1);
    const auto ranges = pages.to_ranges(GuestAddress{whole_space - 8191}).value();
    ASSERT_EQ(ranges.size(), 1U);
    EXPECT_EQ(ranges[0].last(), GuestAddress::max());
    const auto past = pages.to_ranges(GuestAddress{whole_space - 8190});
    ASSERT_FALSE(past);
    EXPECT_EQ(past.error().code(), Errc::out_of_range);
}

}  // namespace
}  // namespace guestmem
