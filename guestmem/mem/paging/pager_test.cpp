// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/pager.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/backends/testing/child.hpp"
#include "guestmem/mem/backends/testing/host_pages.hpp"
#include "guestmem/mem/paging/lazy_area.hpp"
#include "guestmem/mem/paging/testing/lazy_memory.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/memory_advice.hpp"
#include "guestmem/sys/testing/resources.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using namespace std::chrono_literals;
using namespace testing;  // NOLINT(google-build-using-namespace): the words of tests

// -------------------------------------------------------------------------------------------------- faults

TEST_F(PagerTest, GivesEveryPageToThreadsThatTouchThemAtOnce) {
    constexpr std::uint64_t count = 4096;
    const auto bytes = begin(with(std::make_shared<MadeUpSource>(count)));
    std::vector<std::thread> threads;
    for (unsigned seed = 1; seed <= 4; ++seed)
        threads.emplace_back([bytes, seed] {
            GM_CHECK(prepare_thread_for_guest_memory().has_value());
            std::mt19937 random{seed};
            std::vector<std::uint64_t> order(count);
            for (std::uint64_t i = 0; i < count; ++i) order[i] = i;
            std::ranges::shuffle(order, random);
            for (const std::uint64_t number : order)
                EXPECT_EQ(look(bytes, number), word_of(number)) << number;
        });
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(pager->health());
    EXPECT_TRUE(pager->wait_until_filled(20s));
    const PagerCounters counters = pager->counters();
    EXPECT_EQ(counters.pages_by_fault, count);
    constexpr std::uint64_t count_zeros = (count - 4) / 7 + 1;
    EXPECT_EQ(counters.zero_pages, count_zeros);
    EXPECT_EQ(counters.copied_bytes, (count - count_zeros) * page);
    EXPECT_GE(counters.faults, count / 16);
    EXPECT_GT(counters.longest_answer.count(), 0);
}

TEST_F(PagerTest, FetchesTheMissingNeighborsOfAFaultWithinItsWindow) {
    const auto source = std::make_shared<MadeUpSource>(40);
    PagerOptions options = with(source);
    options.regions = {part_of(4, 36)};
    const auto bytes = begin(std::move(options));
    EXPECT_EQ(look(bytes, 2), word_of(6));
    EXPECT_EQ(look(bytes, 11), word_of(15));
    EXPECT_EQ(look(bytes, 35), word_of(39));
    EXPECT_THAT(source->fetched(), ElementsAre(part_of(4, 12), part_of(32, 8)));
    // The touch of a neighbor may come before the neighbor does: it waits, and is no reason to fetch again.
    wait_for([](const PagerCounters& counters) { return counters.faults == 2 || counters.faults == 3; });
}

TEST_F(PagerTest, ShowsTheImagesPiecesInItsRegions) {
    PagerOptions options = with(std::make_shared<MadeUpSource>(100));
    options.regions = {part_of(50, 30), part_of(0, 10), part_of(10, 5)};
    begin(std::move(options));
    ASSERT_EQ(pager->count_regions(), 3U);
    for (const auto& [region, first, count] : {std::tuple{0U, 50U, 30U}, {1U, 0U, 10U}, {2U, 10U, 5U}}) {
        const auto shown = pager->memory(region).value();
        ASSERT_EQ(shown->bytes().size(), count * page);
        for (std::uint64_t i = 0; i < count; ++i) EXPECT_EQ(look(shown->bytes(), i), word_of(first + i));
    }
    EXPECT_FALSE(pager->memory(3));
    EXPECT_TRUE(pager->wait_until_filled(20s));
    EXPECT_TRUE(pager->is_filled());
}

TEST_F(PagerTest, KeepsPagesThatCameAlong) {
    const auto source =
        std::make_shared<MadeUpSource>(100, [](ImagePart wanted, PageSink& sink) -> Result<void> {
            GM_TRY(MadeUpSource::give(part_of(90, 2), sink));
            GM_TRY(sink.take_zeros(part_of(94, 1)));  // 94 % 7 is 3
            return MadeUpSource::give(wanted, sink);
        });
    const auto bytes = begin(with(source));
    for (const std::uint64_t number : {0U, 90U, 91U, 94U}) EXPECT_EQ(look(bytes, number), word_of(number));
    EXPECT_EQ(source->fetched().size(), 1U);
}

TEST_F(PagerTest, KeepsWhatWasWrittenWhenPagesComeAgain) {
    const auto source = std::make_shared<MadeUpSource>(64, [](ImagePart, PageSink& sink) -> Result<void> {
        return MadeUpSource::give(part_of(0, 64), sink);
    });
    PagerOptions options = with(source);
    options.regions = {part_of(0, 32)};
    const auto bytes = begin(std::move(options));
    std::memset(bytes.data() + page, 0x11, page);
    EXPECT_EQ(look(bytes, 20), word_of(20));
    EXPECT_EQ(look(bytes, 1), 0x1111111111111111U);
}

TEST_F(PagerTest, AnswersTheKernelsOwnTouches) {
    PagerOptions options = with(std::make_shared<MadeUpSource>(32));
    options.user_faults_only = false;
    auto made = Pager::start(std::move(options));
    if (!made) GTEST_SKIP() << "SKIPPED: " << made.error().message();
    const auto shown = (*made)->memory(0).value();
    int ends[2] = {};
    ASSERT_EQ(::pipe(ends), 0);
    const Fd out{ends[0]};
    const Fd in{ends[1]};
    ASSERT_EQ(::write(ends[1], shown->bytes().data() + 5 * page, 16), 16);
    std::uint64_t words[2] = {};
    ASSERT_EQ(::read(ends[0], words, 16), 16);
    EXPECT_EQ(words[1], word_of(5));
}

TEST_F(PagerTest, IsKeptFromChildren) {
    const auto bytes = begin(with(std::make_shared<MadeUpSource>(4)));
    const auto flags = testing::flags_of_mapping(bytes.data());
    if (flags.empty()) GTEST_SKIP() << "SKIPPED: no VmFlags in /proc/self/smaps";
    EXPECT_THAT(flags, ::testing::Contains("dc"));
}

TEST_F(PagerTest, TakesPagesThatArePushedAndAsksForTheRestAfterwards) {
    std::atomic<int> step{0};
    auto source = std::make_shared<MadeUpSource>(64, [&](ImagePart wanted, PageSink& sink) -> Result<void> {
        return step < 2 ? Result<void>{} : MadeUpSource::give(wanted, sink);
    });
    source->pushed = EventFd::create().value();
    MadeUpSource* const own = source.get();
    source->on_arrival = [&, own](PageSink& sink) -> Result<bool> {
        GM_CHECK(own->pushed->drain().has_value());
        if (++step == 2) return false;
        GM_TRY(MadeUpSource::give(part_of(16, 8), sink));
        return true;
    };
    const auto bytes = begin(with(source));
    std::thread reader{[&] {
        GM_CHECK(prepare_thread_for_guest_memory().has_value());
        EXPECT_EQ(look(bytes, 18), word_of(18));
        EXPECT_EQ(look(bytes, 40), word_of(40));
    }};
    ASSERT_TRUE(own->pushed->ring());
    wait_for(
        [](const PagerCounters& counters) { return counters.pages_ahead + counters.pages_by_fault >= 8; });
    EXPECT_EQ(look(bytes, 23), word_of(23));
    ASSERT_TRUE(own->pushed->ring());
    reader.join();
    EXPECT_EQ(look(bytes, 63), word_of(63));
    EXPECT_TRUE(pager->health());
}

TEST_F(PagerTest, AsksForAllPagesOnceTheLastOneWasPushed) {
    auto source = std::make_shared<MadeUpSource>(64);
    source->pushed = EventFd::create().value();
    MadeUpSource* const own = source.get();
    source->on_arrival = [own](PageSink& sink) -> Result<bool> {
        own->pushed.reset();
        GM_TRY(MadeUpSource::give(part_of(0, 1), sink));
        return true;
    };
    PagerOptions options = with(source);
    options.is_filled = true;
    ASSERT_TRUE(source->pushed->ring());
    const auto bytes = begin(std::move(options));
    ASSERT_TRUE(pager->wait_until_filled(20s));
    EXPECT_EQ(look(bytes, 63), word_of(63));
}

// ----------------------------------------------------------------------------------------- fetching ahead

TEST_F(PagerTest, FetchesAWorkingSetInItsOrderAndNothingElse) {
    const auto source = std::make_shared<MadeUpSource>(1000);
    PagerOptions options = with(source);
    options.ahead = {700, 701, 702, 20, 10, 11, 700, 3, 999};
    const auto bytes = begin(std::move(options));
    wait_for([](const PagerCounters& counters) { return counters.pages_ahead == 8; });
    for (const std::uint64_t number : {700U, 701U, 702U, 20U, 10U, 11U, 3U, 999U})
        EXPECT_EQ(look(bytes, number), word_of(number));
    EXPECT_THAT(source->fetched(),
                ElementsAre(part_of(700, 3), part_of(20, 1), part_of(10, 2), part_of(3, 1), part_of(999, 1)));
    EXPECT_EQ(pager->counters().faults, 0U);
}

TEST_F(PagerTest, BringsAPageOfAWorkingSetWithoutItsNeighbors) {
    std::atomic<bool> is_open{false};
    const auto source =
        std::make_shared<MadeUpSource>(100, [&](ImagePart wanted, PageSink& sink) -> Result<void> {
            while (!is_open) std::this_thread::sleep_for(1ms);
            return MadeUpSource::give(wanted, sink);
        });
    PagerOptions options = with(source);
    options.ahead = {90, 40};
    const auto bytes = begin(std::move(options));
    while (source->fetched().empty()) std::this_thread::sleep_for(1ms);
    std::thread reader{[&] {
        GM_CHECK(prepare_thread_for_guest_memory().has_value());
        EXPECT_EQ(look(bytes, 40), word_of(40));
        EXPECT_EQ(look(bytes, 50), word_of(50));
    }};
    // The touch comes while the first page is fetched; without it the second one would be one of those ahead, alone,
    // too.
    std::this_thread::sleep_for(50ms);
    is_open = true;
    reader.join();
    EXPECT_THAT(source->fetched(), ElementsAre(part_of(90, 1), part_of(40, 1), part_of(48, 16)));
    EXPECT_EQ(pager->counters().pages_ahead, 1U);
}

TEST_F(PagerTest, FilledIsLeftAloneByThePager) {
    PagerOptions options = with(std::make_shared<MadeUpSource>(1000));
    options.is_filled = true;
    options.regions = {part_of(0, 300), part_of(301, 699)};
    const auto bytes = begin(std::move(options));
    ASSERT_TRUE(pager->wait_until_filled(20s));
    EXPECT_TRUE(pager->is_filled());
    for (std::uint64_t number = 0; number < 300; ++number) EXPECT_EQ(look(bytes, number), word_of(number));
    const auto second = pager->memory(1).value();
    for (std::uint64_t number = 0; number < 699; ++number)
        EXPECT_EQ(look(second->bytes(), number), word_of(number + 301));
    ASSERT_TRUE(discard_pages(bytes.first(2 * page)));
    EXPECT_EQ(look(bytes, 1), 0U);
    EXPECT_EQ(pager->counters().faults, 0U);
    EXPECT_EQ(pager->counters().removed_pages, 0U);
}

TEST_F(PagerTest, AnswersAFaultBetweenTwoPiecesOfWhatItFetchesAhead) {
    constexpr std::uint64_t count = 512;
    std::atomic<int> budget{1};
    const auto source =
        std::make_shared<MadeUpSource>(count, [&](ImagePart wanted, PageSink& sink) -> Result<void> {
            while (budget <= 0) std::this_thread::sleep_for(1ms);
            --budget;
            return MadeUpSource::give(wanted, sink);
        });
    PagerOptions options = with(source);
    options.is_filled = true;
    options.ahead_bytes = options.fetch_bytes = page;
    const auto bytes = begin(std::move(options));
    while (source->fetched().size() < 2) std::this_thread::sleep_for(1ms);
    std::thread reader{[&] {
        GM_CHECK(prepare_thread_for_guest_memory().has_value());
        EXPECT_EQ(look(bytes, 400), word_of(400));
    }};
    std::this_thread::sleep_for(50ms);
    budget = 100'000;
    reader.join();
    ASSERT_TRUE(pager->wait_until_filled(20s));
    const auto fetched = source->fetched();
    EXPECT_EQ(fetched.at(2), part_of(400, 1));
}

TEST_F(PagerTest, SaysWhenItIsNotFullInTime) {
    begin(with(std::make_shared<MadeUpSource>(4)));
    EXPECT_EQ(pager->wait_until_filled(1ms).error().code(), Errc::timed_out);
    EXPECT_FALSE(pager->is_filled());
}

TEST_F(PagerTest, AsksForMoreAndMoreWhileOnlyZerosCome) {
    constexpr std::uint64_t count = 16'384;
    const auto source = std::make_shared<MadeUpSource>(count, [](ImagePart wanted, PageSink& sink) {
        // One page of bytes in the middle of zeros.
        if (common_part(wanted, part_of(8000, 1)).size_bytes == 0) return sink.take_zeros(wanted);
        return MadeUpSource::give(wanted, sink);
    });
    PagerOptions options = with(source);
    options.is_filled = true;
    options.ahead_bytes = 16 * page;
    begin(std::move(options));
    ASSERT_TRUE(pager->wait_until_filled(20s));
    constexpr std::uint64_t largest_pages = 1024;
    std::uint64_t wanted_pages = 16;
    for (const ImagePart& part : source->fetched()) {
        EXPECT_EQ(part.size_bytes, std::min(wanted_pages * page, count * page - part.offset_bytes));
        wanted_pages = common_part(part, part_of(8000, 1)).size_bytes != 0
                           ? 16
                           : std::min(2 * wanted_pages, largest_pages);
    }
    EXPECT_LT(source->fetched().size(), 50U);
}

TEST_F(PagerTest, HearsOfTouchesWhileItPassesOverALongWorkingSet) {
    // All that is in it has come; there is a region to look at for each page.
    constexpr std::uint64_t count = max_pager_regions;
    PagerOptions options = with(std::make_shared<MadeUpSource>(count));
    options.regions.clear();
    for (std::uint64_t number = 0; number < count; ++number) options.regions.push_back(part_of(number, 1));
    options.ahead = std::vector<std::uint64_t>(std::size_t{1} << 20, 0);
    const auto bytes = begin(std::move(options));
    EXPECT_EQ(look(bytes, 0), word_of(0));
    const auto before = std::chrono::steady_clock::now();
    const auto last = pager->memory(count - 1).value();
    EXPECT_EQ(look(last->bytes(), 0), word_of(count - 1));
    EXPECT_LT(std::chrono::steady_clock::now() - before, 500ms);
}

// ----------------------------------------------------------------------------------------------- recording

TEST_F(PagerTest, RecordsTheOrderOfFirstTouches) {
    // It gives more than it is asked for, which hides nothing.
    const auto source = std::make_shared<MadeUpSource>(
        64, [](ImagePart, PageSink& sink) { return MadeUpSource::give(part_of(0, 64), sink); });
    PagerOptions options = with(source);
    options.regions = {part_of(32, 32), part_of(0, 32)};
    options.is_recorded = true;
    const auto high = begin(std::move(options));
    const auto low = pager->memory(1).value();
    EXPECT_EQ(look(high, 5), word_of(37));
    EXPECT_EQ(look(high, 6), word_of(38));
    EXPECT_EQ(look(low->bytes(), 3), word_of(3));
    EXPECT_EQ(look(high, 5), word_of(37));
    EXPECT_EQ(look(low->bytes(), 0), word_of(0));
    EXPECT_THAT(pager->recorded(), ElementsAre(37, 38, 3, 0));
    EXPECT_THAT(source->fetched(), ElementsAre(part_of(37, 1), part_of(38, 1), part_of(3, 1), part_of(0, 1)));
}

// ------------------------------------------------------------------------------------------------ removals

TEST_F(PagerTest, RemovedPagesAreZerosWhetherTheyHadComeOrNot) {
    const auto source = std::make_shared<MadeUpSource>(64);
    const auto bytes = begin(with(source));
    EXPECT_EQ(look(bytes, 1), word_of(1));
    ASSERT_TRUE(discard_pages(bytes.subspan(page, page)));
    ASSERT_TRUE(discard_pages(bytes.subspan(20 * page, 4 * page)));
    EXPECT_EQ(look(bytes, 1), 0U);
    for (std::uint64_t number = 16; number < 32; ++number)
        EXPECT_EQ(look(bytes, number), number >= 20 && number < 24 ? 0 : word_of(number)) << number;
    EXPECT_EQ(pager->counters().removed_pages, 4U);
    for (const ImagePart& part : source->fetched()) EXPECT_NE(part, part_of(20, 1));
}

TEST_F(PagerTest, RemovalsAmidFetchingAheadNeverShowTheImageAgain) {
    constexpr std::uint64_t count = 20'000;
    for (unsigned seed = 1; seed <= 5; ++seed) {
        PagerOptions options = with(std::make_shared<MadeUpSource>(count));
        options.is_filled = true;
        const auto bytes = begin(std::move(options));
        std::vector<char> is_removed(count);
        std::vector<std::thread> threads;
        for (std::uint64_t half = 0; half < 2; ++half)
            threads.emplace_back([&, half] {
                GM_CHECK(prepare_thread_for_guest_memory().has_value());
                std::mt19937_64 random{seed + 100 * half};
                for (int i = 0; i < 1000; ++i) {
                    const std::uint64_t number = random() % (count / 2) * 2 + half;
                    if (i % 3 == 0) {
                        EXPECT_EQ(look(bytes, number), is_removed[number] != 0 ? 0 : word_of(number))
                            << number;
                        continue;
                    }
                    EXPECT_TRUE(discard_pages(bytes.subspan(number * page, page)));
                    is_removed[number] = 1;
                    if (i % 3 == 1) {
                        EXPECT_EQ(look(bytes, number), 0U) << number;
                    }
                }
            });
        for (std::thread& thread : threads) thread.join();
        ASSERT_TRUE(pager->wait_until_filled(20s)) << "seed " << seed;
        for (std::uint64_t number = 0; number < count; ++number)
            EXPECT_EQ(look(bytes, number), is_removed[number] != 0 ? 0 : word_of(number)) << number;
        memory.reset();
    }
}

TEST_F(PagerTest, APageThatIsRemovedWhileItIsWaitedForIsAnswered) {
    std::atomic<bool> is_open{false};
    const auto source =
        std::make_shared<MadeUpSource>(16, [&](ImagePart wanted, PageSink& sink) -> Result<void> {
            while (!is_open) std::this_thread::sleep_for(1ms);
            return MadeUpSource::give(wanted, sink);
        });
    const auto bytes = begin(with(source));
    std::thread reader{[&] {
        GM_CHECK(prepare_thread_for_guest_memory().has_value());
        const auto seen = look(bytes, 4);
        EXPECT_TRUE(seen.has_value());
    }};
    while (source->fetched().empty()) std::this_thread::sleep_for(1ms);
    std::thread remover{[&] { EXPECT_TRUE(discard_pages(bytes.first(8 * page))); }};
    std::this_thread::sleep_for(10ms);
    is_open = true;
    reader.join();
    remover.join();
    EXPECT_EQ(look(bytes, 5), 0U);
    EXPECT_EQ(look(bytes, 9), word_of(9));
    EXPECT_TRUE(pager->health());
}

// ---------------------------------------------------------------------------------------- beginning, ending

TEST_F(PagerTest, WaitsAsLongAsAnybodyCanSay) {
    const auto source = std::make_shared<MadeUpSource>(64, [](ImagePart wanted, PageSink& sink) {
        std::this_thread::sleep_for(50ms);
        return MadeUpSource::give(wanted, sink);
    });
    PagerOptions options = with(source);
    options.is_filled = true;
    begin(std::move(options));
    EXPECT_EQ(pager->wait_until_filled(std::chrono::milliseconds::min()).error().code(), Errc::timed_out);
    EXPECT_TRUE(pager->wait_until_filled(std::chrono::milliseconds::max()));
}

TEST_F(PagerTest, ShowsTheImageAlsoWhereAllMemoryIsLocked) {
    if (::geteuid() != 0) GTEST_SKIP() << "SKIPPED: only root can lock as much as it wants";
    ASSERT_EQ(::mlockall(MCL_FUTURE), 0);
    const auto bytes = begin(with(std::make_shared<MadeUpSource>(64)));
    EXPECT_EQ(::munlockall(), 0);
    for (std::uint64_t number = 0; number < 64; ++number)
        EXPECT_EQ(look(bytes, number), word_of(number)) << number;
    EXPECT_TRUE(pager->wait_until_filled(20s));
}

TEST_F(PagerTest, OfAChildThatDropsItStaysTheParents) {
    const auto bytes = begin(with(std::make_shared<MadeUpSource>(64)));
    EXPECT_EQ(look(bytes, 1), word_of(1));
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        ::alarm(20);
        memory.reset();
        pager.reset();
        ::_exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status)) << "it hangs";
    for (std::uint64_t number = 0; number < 64; ++number) EXPECT_EQ(look(bytes, number), word_of(number));
}

TEST_F(PagerTest, OfBadOptionsIsAClearError) {
    const auto refusal = [](const std::function<void(PagerOptions&)>& change) {
        PagerOptions options = with(std::make_shared<MadeUpSource>(10));
        change(options);
        const auto made = Pager::start(std::move(options));
        return made ? std::string{"taken"} : made.error().message();
    };
    EXPECT_EQ(refusal([](PagerOptions&) {}), "taken");
    EXPECT_THAT(refusal([](PagerOptions& o) { o.source = nullptr; }), HasSubstr("no source"));
    EXPECT_THAT(refusal([](PagerOptions& o) { o.regions.clear(); }), HasSubstr("0 regions"));
    EXPECT_THAT(refusal([](PagerOptions& o) { o.regions = {part_of(0, 11)}; }),
                HasSubstr("no whole pages of"));
    EXPECT_THAT(refusal([](PagerOptions& o) { o.regions = {part_of(10, 1)}; }),
                HasSubstr("no whole pages of"));
    EXPECT_THAT(refusal([](PagerOptions& o) { o.regions = {{.offset_bytes = 1, .size_bytes = page}}; }),
                HasSubstr("no whole pages of"));
    EXPECT_THAT(refusal([](PagerOptions& o) { o.regions = {part_of(0, 0)}; }),
                HasSubstr("no whole pages of"));
    EXPECT_THAT(refusal([](PagerOptions& o) { o.regions = {part_of(4, 2), part_of(0, 5)}; }),
                HasSubstr("two regions show the image's bytes at 16384"));
    EXPECT_THAT(refusal([](PagerOptions& o) { o.fetch_bytes = 0; }), HasSubstr("a fetch of 0"));
    EXPECT_THAT(refusal([](PagerOptions& o) { o.fetch_bytes = 2 * max_part_bytes; }),
                HasSubstr("a fetch of"));
    EXPECT_THAT(refusal([](PagerOptions& o) { o.ahead_bytes = 4097; }), HasSubstr("a fetch ahead of 4097"));
    EXPECT_THAT(refusal([](PagerOptions& o) { o.patience = 0ms; }), HasSubstr("a patience of 0 ms"));
    EXPECT_EQ(refusal([](PagerOptions& o) { o.patience = std::chrono::milliseconds::max(); }), "taken");
    EXPECT_THAT(refusal([](PagerOptions& o) { o.ahead = {9, 10}; }), HasSubstr("page 10"));
    EXPECT_THAT(refusal([](PagerOptions& o) { o.is_recorded = o.is_filled = true; }), HasSubstr("recorded"));
    EXPECT_EQ(refusal([](PagerOptions& o) {
                  o.source = std::make_shared<MadeUpSource>(max_pager_regions);
                  o.regions.clear();
                  for (std::uint64_t i = 0; i < max_pager_regions; ++i) o.regions.push_back(part_of(i, 1));
              }),
              "taken");
    EXPECT_THAT(refusal([](PagerOptions& o) {
                    o.source = std::make_shared<MadeUpSource>(max_pager_regions + 1);
                    o.regions.clear();
                    for (std::uint64_t i = 0; i <= max_pager_regions; ++i) o.regions.push_back(part_of(i, 1));
                }),
                HasSubstr("1025 regions"));
}

TEST_F(PagerTest, LivesAsLongAsItsMemory) {
    const auto source = std::make_shared<MadeUpSource>(64);
    const auto bytes = begin(with(source));
    pager.reset();
    EXPECT_EQ(look(bytes, 9), word_of(9));
    EXPECT_EQ(source.use_count(), 2);
    memory.reset();
    EXPECT_EQ(source.use_count(), 1);
}

TEST_F(PagerTest, EndsInTheMiddleOfFilling) {
    for (int i = 0; i < 20; ++i) {
        PagerOptions options = with(std::make_shared<MadeUpSource>(100'000));
        options.is_filled = true;
        begin(std::move(options));
        const auto before = std::chrono::steady_clock::now();
        memory.reset();
        pager.reset();
        EXPECT_LT(std::chrono::steady_clock::now() - before, 5s);
    }
}

TEST_F(PagerTest, EndsAlsoWhileAChildHasItsDescriptors) {
    const auto bytes = begin(with(std::make_shared<MadeUpSource>(64)));
    EXPECT_EQ(look(bytes, 9), word_of(9));
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        ::pause();
        ::_exit(0);
    }
    memory.reset();
    pager.reset();
    EXPECT_EQ(::kill(child, SIGKILL), 0);
    EXPECT_EQ(::waitpid(child, nullptr, 0), child);
}

TEST_F(PagerTest, OfAnOrdinaryUserSaysWhatIsMissing) {
    if (::geteuid() != 0) GTEST_SKIP() << "SKIPPED: only root can become another user";
    // Asked in a child: the watchdog's thread stays behind.
    testing::in_child([] {
        testing::become_user(testing::other_user);
        PagerOptions options = with(std::make_shared<MadeUpSource>(4));
        options.user_faults_only = false;
        const auto made = Pager::start(std::move(options));
        if (!made) {
            EXPECT_EQ(made.error().code(), Errc::permission_denied);
            EXPECT_THAT(made.error().message(), HasSubstr("vm.unprivileged_userfaultfd"));
        }
    });
}

TEST_F(PagerTest, IsNotMadeWhateverFailsAndNothingIsLeft) {
    // Two regions: the second watched one fails, too. Of ioctl the first three are those of start() itself.
    for (const auto& [only, count_calls] : {std::pair{SysCall::userfaultfd, 1U},
                                            {SysCall::eventfd, 1U},
                                            {SysCall::ioctl, 3U},
                                            {SysCall::mmap, 4U},
                                            {SysCall::madvise, 4U}})
        for (std::uint64_t nth = 0; nth < count_calls; ++nth) {
            PagerOptions options = with(std::make_shared<MadeUpSource>(4));
            options.regions = {part_of(0, 2), part_of(2, 2)};
            const Resources before = Resources::look();
            {
                const FaultInjector injector{nth, {.only = only}};
                EXPECT_FALSE(Pager::start(std::move(options))) << to_string(only);
                EXPECT_TRUE(injector.has_fired()) << to_string(only) << " " << nth;
            }
            EXPECT_EQ(Resources::look(), before) << to_string(only);
        }
}

}  // namespace
}  // namespace guestmem
