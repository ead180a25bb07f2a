// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/page_runs.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr std::uint64_t last_number = std::numeric_limits<std::uint64_t>::max();

PageRuns runs_of(std::initializer_list<PageRun> list) {
    PageRuns runs;
    for (const PageRun& run : list) runs.add(run.first, run.count);
    return runs;
}

/// As in a file, whatever the runs are.
std::vector<std::byte> bytes_of(std::initializer_list<PageRun> list) {
    std::vector<std::byte> bytes;
    const auto put = [&](std::uint64_t number) {
        for (unsigned shift = 0; shift < 64; shift += 8)
            bytes.push_back(static_cast<std::byte>(number >> shift));
    };
    for (const PageRun& run : list) {
        put(run.first);
        put(run.count);
    }
    return bytes;
}

using Piece = std::tuple<std::uint64_t, std::uint64_t, bool>;
std::vector<Piece> pieces_of(const PageRuns& runs, std::uint64_t first, std::uint64_t behind) {
    std::vector<Piece> pieces;
    runs.split(first, behind, [&](std::uint64_t from, std::uint64_t to, bool is_in) {
        pieces.emplace_back(from, to, is_in);
    });
    return pieces;
}

TEST(PageRuns, ThatTouchAreOne) {
    PageRuns runs = runs_of({{2, 3}, {5, 1}, {7, 1}});
    EXPECT_THAT(runs.runs(), ElementsAre(PageRun{2, 4}, PageRun{7, 1}));
    runs.add(8, 0);
    runs.add(8, 2);
    EXPECT_THAT(runs.runs(), ElementsAre(PageRun{2, 4}, PageRun{7, 3}));
    EXPECT_EQ(runs.count_pages(), 7U);
}

TEST(PageRuns, OfNothingHaveNoPage) {
    const PageRuns runs;
    EXPECT_THAT(runs.runs(), IsEmpty());
    EXPECT_EQ(runs.count_pages(), 0U);
    EXPECT_FALSE(runs.contains(0));
    EXPECT_FALSE(runs.contains(last_number));
    EXPECT_THAT(runs.to_bytes(), IsEmpty());
    EXPECT_THAT(pieces_of(runs, 0, last_number), ElementsAre(Piece{0, last_number, false}));
    EXPECT_EQ(parse_page_runs({}, 0).value(), runs);
}

TEST(PageRuns, AddedOutOfOrderEndTheProgram) {
    PageRuns runs = runs_of({{2, 3}});
    EXPECT_DEATH(runs.add(4, 1), "check failed");
    EXPECT_DEATH(runs.add(0, 1), "check failed");
    EXPECT_DEATH(runs.add(last_number, 1), "check failed");
}

TEST(PageRuns, ContainTheirPagesAndNotTheNeighbors) {
    const PageRuns runs = runs_of({{0, 1}, {5, 3}, {last_number - 1, 1}});
    for (const std::uint64_t page : {std::uint64_t{0}, std::uint64_t{5}, std::uint64_t{7}, last_number - 1})
        EXPECT_TRUE(runs.contains(page)) << page;
    for (const std::uint64_t page :
         {std::uint64_t{1}, std::uint64_t{4}, std::uint64_t{8}, last_number - 2, last_number})
        EXPECT_FALSE(runs.contains(page)) << page;
}

TEST(PageRuns, SplitAPartIntoPiecesThatAreInAndOut) {
    const PageRuns runs = runs_of({{2, 3}, {8, 2}});
    EXPECT_THAT(pieces_of(runs, 0, 12), ElementsAre(Piece{0, 2, false}, Piece{2, 5, true}, Piece{5, 8, false},
                                                    Piece{8, 10, true}, Piece{10, 12, false}));
    EXPECT_THAT(pieces_of(runs, 3, 9), ElementsAre(Piece{3, 5, true}, Piece{5, 8, false}, Piece{8, 9, true}));
    EXPECT_THAT(pieces_of(runs, 2, 5), ElementsAre(Piece{2, 5, true}));
    EXPECT_THAT(pieces_of(runs, 5, 8), ElementsAre(Piece{5, 8, false}));
    EXPECT_THAT(pieces_of(runs, 4, 4), IsEmpty());
    EXPECT_DEATH(static_cast<void>(pieces_of(runs, 5, 4)), "check failed");
}

TEST(PageRuns, SplitEndsAtTheFirstErrorOfTheCallback) {
    const PageRuns runs = runs_of({{2, 3}, {8, 2}});
    int calls = 0;
    const auto until_in = [&](std::uint64_t, std::uint64_t, bool is_in) -> Result<void> {
        ++calls;
        if (is_in) return Error{Errc::io, "no more"};
        return {};
    };
    const auto result = runs.split(0, 12, until_in);
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().message(), "no more");
    EXPECT_EQ(calls, 2);
    EXPECT_TRUE(runs.split(10, 12, until_in));
}

TEST(PageRuns, NextIsTheLongestPiece) {
    const PageRuns runs = runs_of({{2, 3}, {8, 2}});
    EXPECT_EQ(runs.next(0, 100), (PagePiece{2, false}));
    EXPECT_EQ(runs.next(0, 1), (PagePiece{1, false}));
    EXPECT_EQ(runs.next(2, 100), (PagePiece{5, true}));
    EXPECT_EQ(runs.next(4, 100), (PagePiece{5, true}));
    EXPECT_EQ(runs.next(3, 4), (PagePiece{4, true}));
    EXPECT_EQ(runs.next(5, 100), (PagePiece{8, false}));
    EXPECT_EQ(runs.next(10, last_number), (PagePiece{last_number, false}));
    EXPECT_DEATH(static_cast<void>(runs.next(5, 5)), "check failed");
}

TEST(PageRuns, AreWhatASetOfPagesIs) {
    std::mt19937_64 random{20};
    for (int round = 0; round < 300; ++round) {
        SCOPED_TRACE(round);
        constexpr std::uint64_t image_pages = 120;
        PageRuns runs;
        std::set<std::uint64_t> model;
        for (std::uint64_t page = 0; page < image_pages;) {
            page += random() % 9;
            const std::uint64_t count = std::min(random() % 6, image_pages - std::min(page, image_pages));
            if (page >= image_pages) break;
            runs.add(page, count);
            for (const std::uint64_t behind = page + count; page < behind; ++page) model.insert(page);
        }
        EXPECT_EQ(runs.count_pages(), model.size());
        for (std::uint64_t page = 0; page < image_pages + 2; ++page)
            EXPECT_EQ(runs.contains(page), model.contains(page)) << page;
        const std::uint64_t first = random() % image_pages;
        const std::uint64_t behind = first + random() % (image_pages - first + 1);
        std::uint64_t at = first;
        bool was_in = false;
        for (const auto& [from, to, is_in] : pieces_of(runs, first, behind)) {
            EXPECT_EQ(from, at);
            EXPECT_LT(from, to);
            EXPECT_TRUE(from == first || is_in != was_in) << "pieces are as long as they can be";
            EXPECT_EQ(runs.next(from, behind), (PagePiece{to, is_in}));
            for (std::uint64_t page = from; page < to; ++page) EXPECT_EQ(model.contains(page), is_in) << page;
            at = to;
            was_in = is_in;
        }
        EXPECT_EQ(at, behind);
        const auto again = parse_page_runs(runs.to_bytes(), image_pages);
        ASSERT_TRUE(again);
        EXPECT_EQ(*again, runs);
    }
}

TEST(PageRunsBytes, AreTwoLittleEndianWordsARun) {
    EXPECT_EQ(runs_of({{0x0102030405060708, 0x1112}, {0x1234567800000000, 1}}).to_bytes(),
              bytes_of({{0x0102030405060708, 0x1112}, {0x1234567800000000, 1}}));
}

TEST(PageRunsBytes, MayReachToTheEndOfTheImageAndNotBeyond) {
    EXPECT_EQ(parse_page_runs(bytes_of({{0, 2}, {3, 4}}), 7).value().count_pages(), 6U);
    EXPECT_EQ(parse_page_runs(bytes_of({{0, last_number}}), last_number).value().count_pages(), last_number);
    for (const PageRun& run : {PageRun{3, 5},
                               {7, 1},
                               {8, 1},
                               {last_number, 1},
                               {1, last_number},
                               {2, last_number - 1},
                               {last_number, last_number}}) {
        const auto parsed = parse_page_runs(bytes_of({{0, 1}, run}), 7);
        ASSERT_FALSE(parsed) << run.first << " " << run.count;
        EXPECT_EQ(parsed.error().code(), Errc::corrupt);
        EXPECT_THAT(parsed.error().message(), HasSubstr("run 1"));
        EXPECT_THAT(parsed.error().message(), HasSubstr("the image has 7 pages"));
    }
}

TEST(PageRunsBytes, InAnotherFormAreAnError) {
    const auto message_of = [](std::vector<std::byte> bytes) {
        const auto parsed = parse_page_runs(bytes, 1000);
        return parsed ? "taken" : parsed.error().message();
    };
    EXPECT_THAT(message_of(bytes_of({{5, 0}})), HasSubstr("run 0, 0 pages from page 5: it is empty"));
    EXPECT_THAT(message_of(bytes_of({{5, 2}, {6, 2}})), HasSubstr("they overlap"));
    EXPECT_THAT(message_of(bytes_of({{5, 2}, {5, 2}})), HasSubstr("they overlap"));
    EXPECT_THAT(message_of(bytes_of({{5, 2}, {0, 2}})), HasSubstr("ascending"));
    EXPECT_THAT(message_of(bytes_of({{5, 2}, {7, 2}})), HasSubstr("it touches the run before it"));
    EXPECT_EQ(message_of(bytes_of({{0, 1}, {2, 1}})), "taken");
    for (std::size_t size = 1; size < page_run_bytes; ++size) {
        std::vector<std::byte> bytes = bytes_of({{0, 1}, {2, 1}});
        bytes.resize(page_run_bytes + size);
        EXPECT_THAT(message_of(bytes), HasSubstr("are no whole runs of 16 bytes"));
    }
}

TEST(PageRunsBytes, OfMoreThanTheLimitAreAnError) {
    // Runs that stand in order, so that only their number is wrong.
    PageRuns runs;
    for (std::uint64_t number = 0; number < max_page_runs; ++number) runs.add(2 * number, 1);
    EXPECT_TRUE(parse_page_runs(runs.to_bytes(), 2 * max_page_runs).value() == runs);
    runs.add(2 * max_page_runs, 1);
    const auto parsed = parse_page_runs(runs.to_bytes(), last_number);
    ASSERT_FALSE(parsed);
    EXPECT_EQ(parsed.error().code(), Errc::out_of_range);
    EXPECT_THAT(parsed.error().message(), HasSubstr("16777217 runs are more than 16777216"));
}

}  // namespace
}  // namespace guestmem
