// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/dirty_log.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/testing/store_buffering.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/membarrier.hpp"

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

std::unique_ptr<DirtyLog> log_of(std::uint64_t size_bytes, std::uint64_t page_bytes = 4096) {
    return DirtyLog::create({.size_bytes = size_bytes, .page_bytes = page_bytes}).value();
}

/// A log of a process that cannot have membarrier.
std::unique_ptr<DirtyLog> log_without_membarrier(std::uint64_t size_bytes, std::uint64_t page_bytes = 4096) {
    const FaultInjector injector{0, {.only = SysCall::membarrier, .os_error = ENOSYS}};
    auto log = log_of(size_bytes, page_bytes);
    EXPECT_TRUE(injector.has_fired());
    return log;
}

// ---- marks ----

TEST(DirtyLog, RefusesWhatTheGridRefuses) {
    const auto odd = DirtyLog::create({.size_bytes = 4096, .page_bytes = 4095});
    ASSERT_FALSE(odd);
    EXPECT_EQ(odd.error().code(), Errc::invalid_argument);
    EXPECT_FALSE(DirtyLog::create({.size_bytes = 0}));
    const auto large = DirtyLog::create({.size_bytes = whole_space});
    ASSERT_FALSE(large);
    EXPECT_EQ(large.error().code(), Errc::out_of_range);
}

TEST(DirtyLog, IsCleanAtFirst) {
    const auto log = log_of(gib + 1);
    EXPECT_EQ(log->count_pages(), (gib >> 12) + 1);
    EXPECT_EQ(log->page_bytes(), 4096U);
    EXPECT_EQ(log->size_bytes(), gib + 1);
    EXPECT_FALSE(log->is_marked(0));
    EXPECT_FALSE(log->harvest()->is_any_dirty());
}

class DirtyLogOf : public ::testing::TestWithParam<std::uint64_t> {};
INSTANTIATE_TEST_SUITE_P(PageSizes, DirtyLogOf,
                         ::testing::Values(std::uint64_t{64}, std::uint64_t{4096}, std::uint64_t{65536},
                                           std::uint64_t{2} << 20, gib));

TEST_P(DirtyLogOf, MarksThePagesThatAWriteTouches) {
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
                          Case{64 * page - 1, 64 * page + 2, 63, 66},
                          Case{1, 130 * page, 0, 130},
                          Case{size - 1, 1, 129, 1},
                          Case{size - 1, 2, 129, 1},
                          Case{size - 1, whole_space, 129, 1},
                          Case{size - 1, whole_space - size + 2, 129, 1},
                          Case{0, whole_space, 0, 130},
                          Case{7, 0, 0, 0},
                          Case{size - 1, 0, 0, 0},
                          Case{size, 0, 0, 0},
                          Case{size, 1, 0, 0},
                          Case{size + page, 1, 0, 0},
                          Case{whole_space, 0, 0, 0},
                          Case{whole_space, 1, 0, 0},
                          Case{whole_space, whole_space, 0, 0},
                          Case{whole_space - page + 1, 2 * page, 0, 0}}) {
        SCOPED_TRACE(::testing::Message() << "offset " << c.offset << " count " << c.count);
        for (const bool has_membarrier : {true, false}) {
            const auto log = has_membarrier ? log_of(size, page) : log_without_membarrier(size, page);
            log->mark(c.offset, c.count);
            log->mark(c.offset, c.count);
            for (std::uint64_t i = 0; i < 130; ++i)
                EXPECT_EQ(log->is_marked(i * page + page - 1), i >= c.first && i - c.first < c.pages) << i;
            EXPECT_EQ(log->harvest()->count_dirty(), c.pages);
            EXPECT_EQ(log->harvest()->count_dirty(), 0U);
        }
    }
}

TEST(DirtyLog, TheLastPageOfAnOddSizeIsAPageButNothingIsMarkedPastTheEnd) {
    const auto log = log_of(8192 + 100);
    log->mark(8192 + 100, 1);
    log->mark(8192 + 4095, 1);
    EXPECT_FALSE(log->harvest()->is_any_dirty());
    EXPECT_FALSE(log->is_marked(8192 + 100));
    log->mark(8192 + 99, 4096);
    EXPECT_TRUE(log->is_marked(8192));
    EXPECT_EQ(log->harvest()->runs(), (std::vector{DirtyRun{8192, 100}}));
}

TEST(DirtyLog, PeekLeavesTheMarksAndClearDropsThem) {
    const auto log = log_of(10 * 4096);
    log->mark(4096, 1);
    EXPECT_EQ(log->peek()->runs(), (std::vector{DirtyRun{4096, 4096}}));
    EXPECT_EQ(log->peek()->runs(), (std::vector{DirtyRun{4096, 4096}}));
    EXPECT_TRUE(log->is_marked(4096));
    ASSERT_TRUE(log->clear());
    EXPECT_FALSE(log->is_marked(4096));
    EXPECT_FALSE(log->peek()->is_any_dirty());
}

TEST(DirtyLog, HarvestIntoReplacesWhateverWasThere) {
    const auto log = log_of(10 * 4096);
    DirtyPages pages = DirtyPages::create({.size_bytes = 10 * 4096}).value();
    pages.mark(0, 10 * 4096);
    const std::uint64_t* const words = pages.words().data();
    log->mark(4096, 1);
    ASSERT_TRUE(log->harvest_into(pages));
    EXPECT_EQ(pages.runs(), (std::vector{DirtyRun{4096, 4096}}));
    EXPECT_EQ(pages.words().data(), words) << "the memory was not reused";

    DirtyPages other = DirtyPages::create({.size_bytes = 4096, .page_bytes = 64}).value();
    log->mark(8192, 1);
    ASSERT_TRUE(log->harvest_into(other));
    EXPECT_EQ(other.grid(), pages.grid());
    EXPECT_EQ(other.runs(), (std::vector{DirtyRun{8192, 4096}}));
}

/// The process gets 16 MiB more of address space than it has, and not a byte beyond.
class AddressSpaceFull {
public:
    AddressSpaceFull() {
        std::uint64_t count_pages = 0;
        std::ifstream{"/proc/self/statm"} >> count_pages;
        GM_CHECK(::getrlimit(RLIMIT_AS, &before_) == 0);
        const rlimit little{.rlim_cur = (count_pages << 12) + (16 << 20), .rlim_max = before_.rlim_max};
        GM_CHECK(::setrlimit(RLIMIT_AS, &little) == 0);
    }
    AddressSpaceFull(const AddressSpaceFull&) = delete;
    AddressSpaceFull& operator=(const AddressSpaceFull&) = delete;
    ~AddressSpaceFull() { ::setrlimit(RLIMIT_AS, &before_); }

private:
    rlimit before_{};
};

TEST(DirtyLog, AHarvestWithoutMemoryLeavesNothingDirtyAndKeepsTheMarks) {
    if (has_sanitizer) GTEST_SKIP() << "SKIPPED: a sanitizer ends the program when calloc fails";
    const auto log = log_of(8 * 1024 * gib);  // 256 MiB of bits: more than malloc ever has in stock
    log->mark(4096, 1);
    DirtyPages pages = DirtyPages::create({.size_bytes = 4096}).value();
    pages.mark(0, 1);
    {
        const AddressSpaceFull full;
        const auto harvested = log->harvest_into(pages);
        ASSERT_FALSE(harvested);
        EXPECT_EQ(harvested.error().code(), Errc::exhausted);
    }
    EXPECT_FALSE(pages.is_any_dirty()) << "the pages from before";
    EXPECT_TRUE(log->is_marked(4096));
}

TEST(DirtyLog, MergesPagesOfAnySize) {
    DirtyPages coarse = DirtyPages::create({.size_bytes = 10 * 65536, .page_bytes = 65536}).value();
    coarse.mark(65536, 1);
    coarse.mark(9 * 65536, 1);
    const auto log = log_of(9 * 65536 + 4096);
    log->merge(coarse);
    EXPECT_EQ(log->harvest()->runs(), (std::vector{DirtyRun{65536, 65536}, DirtyRun{9 * 65536, 4096}}));
}

/// Random marks, harvests and merges against a vector of bools.
void expect_what_a_naive_model_expects(DirtyLog& log, std::mt19937_64& random) {
    const std::uint64_t size = log.size_bytes();
    const std::uint64_t page = log.page_bytes();
    std::vector<bool> model(log.count_pages());
    const auto mark_in_model = [&](std::uint64_t offset, std::uint64_t count) {
        if (count == 0 || offset >= size) return;
        const std::uint64_t last = offset + (std::min(count, size - offset) - 1);
        for (std::uint64_t i = offset / page; i <= last / page; ++i) model[i] = true;
    };
    const auto expect_model = [&](const DirtyPages& pages) {
        ASSERT_EQ(pages.count_pages(), model.size());
        for (std::uint64_t i = 0; i < model.size(); ++i) ASSERT_EQ(pages.is_dirty(i * page), model[i]) << i;
        ASSERT_EQ(pages.count_dirty(), static_cast<std::uint64_t>(std::ranges::count(model, true)));
    };
    DirtyPages reused;
    for (int step = 0; step < 120; ++step) {
        const std::uint64_t offset = random() % 10 == 0 ? random() : random() % (size + page);
        const std::uint64_t few = 1 + random() % 16;
        switch (random() % 12) {
            case 0:
                expect_model(log.harvest().value());
                model.assign(model.size(), false);
                break;
            case 1:
                ASSERT_TRUE(log.harvest_into(reused));
                expect_model(reused);
                model.assign(model.size(), false);
                break;
            case 2: expect_model(log.peek().value()); break;
            case 3:
                ASSERT_TRUE(log.clear());
                model.assign(model.size(), false);
                break;
            case 4: {
                DirtyPages other =
                    DirtyPages::create({.size_bytes = 1 + random() % (2 * size), .page_bytes = page}).value();
                other.mark(offset, random() % size);
                for (const DirtyRun& run : other.runs()) mark_in_model(run.offset, run.size_bytes);
                log.merge(other);
                break;
            }
            case 5:
            case 6: {
                const std::uint64_t count = random() % (2 * size);
                log.mark(offset, count);
                mark_in_model(offset, count);
                break;
            }
            default:
                log.mark(offset, few);
                mark_in_model(offset, few);
                if (offset < size) {
                    ASSERT_TRUE(log.is_marked(offset));
                }
                break;
        }
        if (::testing::Test::HasFatalFailure()) return;
    }
}

TEST(DirtyLog, DoesWhatANaiveModelDoes) {
    const std::uint64_t seed = std::random_device{}();
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random{seed};
    for (int turn = 0; turn < 60 && !HasFatalFailure(); ++turn) {
        const std::uint64_t page =
            std::array<std::uint64_t, 5>{64, 4096, 65536, 2 << 20, gib}.at(random() % 5);
        const std::uint64_t size = 1 + random() % (page * 700);
        SCOPED_TRACE(::testing::Message() << size << " bytes, pages of " << page << ", turn " << turn);
        const auto log = turn % 3 == 0 ? log_without_membarrier(size, page) : log_of(size, page);
        expect_what_a_naive_model_expects(*log, random);
    }
}

// ---- the barrier ----

bool has_membarrier() { return prepare_membarrier(); }

TEST(DirtyLog, AHarvestWhoseBarrierFailsLosesNothing) {
    if (!has_membarrier()) GTEST_SKIP() << "SKIPPED: this kernel has no membarrier";
    for (const int os_error : {ENOMEM, EPERM, ENOSYS}) {
        const auto log = log_of(200 * 4096 + 1);
        log->mark(0, 1);
        log->mark(70 * 4096, 3 * 4096);
        log->mark(200 * 4096, 1);
        const std::vector<DirtyRun> all = log->peek()->runs();
        DirtyPages pages = log->peek().value();
        {
            const FaultInjector injector{0, {.only = SysCall::membarrier, .os_error = os_error, .repeat = 3}};
            const auto failed = log->harvest();
            ASSERT_FALSE(failed);
            EXPECT_EQ(failed.error().os_error(), os_error);
            EXPECT_FALSE(log->harvest_into(pages));
            EXPECT_FALSE(pages.is_any_dirty());
            EXPECT_FALSE(log->clear());
        }
        EXPECT_EQ(log->harvest()->runs(), all) << os_error;
    }
}

TEST(DirtyLog, AHarvestThatTakesNothingAsksForNoBarrier) {
    const auto log = log_of(gib);
    const FaultInjector injector{0, {.only = SysCall::membarrier}};
    EXPECT_TRUE(log->harvest());
    EXPECT_TRUE(log->clear());
    EXPECT_FALSE(injector.has_fired());
    log->mark(0, 1);
    if (has_membarrier()) {
        EXPECT_FALSE(log->harvest());
    }
}

TEST(DirtyLog, WithoutMembarrierNoHarvestAsksForIt) {
    const auto log = log_without_membarrier(gib);
    log->mark(4096, 1);
    const FaultInjector injector{0, {.only = SysCall::membarrier}};
    EXPECT_EQ(log->harvest()->runs(), (std::vector{DirtyRun{4096, 4096}}));
    EXPECT_FALSE(injector.has_fired());
}

// ---- the litmus: store buffering ----

/// Guest memory behind one word of the log: each cell has a word.
constexpr std::uint64_t litmus_stride = std::uint64_t{64} * 4096;
constexpr std::uint64_t litmus_bytes = testing::count_litmus_cells * litmus_stride;

/// Pages that are marked, and a harvest that takes the marks.
class Harvested {
public:
    explicit Harvested(std::unique_ptr<DirtyLog> log) : log_(std::move(log)) {}
    void prepare() { log_->mark(0, litmus_bytes); }
    void look(std::uint64_t cell) const { EXPECT_TRUE(log_->is_marked(cell * litmus_stride)); }
    void mark(std::uint64_t cell) { log_->mark(cell * litmus_stride, 8); }
    void take() { EXPECT_TRUE(log_->harvest_into(pages_)); }
    [[nodiscard]] bool is_marked(std::uint64_t cell) const { return log_->is_marked(cell * litmus_stride); }

private:
    std::unique_ptr<DirtyLog> log_;
    DirtyPages pages_;
};

/// The same marks, and a harvest without a barrier: what DirtyLog would be without membarrier.
class HarvestedWithoutBarrier {
public:
    void prepare() {
        for (auto& word : words_) word.value.fetch_or(1, std::memory_order_release);
    }
    void look(std::uint64_t cell) const { EXPECT_TRUE(is_marked(cell)); }
    void mark(std::uint64_t cell) {
        std::atomic_signal_fence(std::memory_order_seq_cst);
        auto& word = words_[cell].value;
        if ((word.load(std::memory_order_relaxed) & 1) == 0) word.fetch_or(1, std::memory_order_release);
    }
    void take() {
        for (auto& word : words_)
            if (word.value.load(std::memory_order_relaxed) != 0)
                word.value.exchange(0, std::memory_order_acquire);
    }
    [[nodiscard]] bool is_marked(std::uint64_t cell) const { return words_[cell].value.load() != 0; }

private:
    struct Word {
        std::atomic<std::uint64_t> value{0};
    };
    std::array<Word, testing::count_litmus_cells> words_;
};

TEST(DirtyLogLitmus, LosesNoPage) {
    const testing::LitmusResult result = testing::run_litmus(Harvested{log_of(litmus_bytes)});
    testing::expect_both_orders("DirtyLog", result);
    EXPECT_EQ(result.count_lost, 0U);
}

TEST(DirtyLogLitmus, LosesNoPageWithoutMembarrierEither) {
    const testing::LitmusResult result = testing::run_litmus(Harvested{log_without_membarrier(litmus_bytes)});
    testing::expect_both_orders("DirtyLog without membarrier", result);
    EXPECT_EQ(result.count_lost, 0U);
}

TEST(DirtyLogLitmus, ALogWithoutAnyBarrierShowsWhatTheLitmusFinds) {
    // How often a page is lost is the processor's business, so the number is told, not asserted.
    const testing::LitmusResult result = testing::run_litmus(HarvestedWithoutBarrier{});
    testing::expect_both_orders("a log without any barrier", result);
    RecordProperty("lost", static_cast<int>(result.count_lost));
}

// ---- writers and a harvester at the same time ----

constexpr std::uint64_t count_shared_pages = 300;
constexpr std::uint64_t words_per_page = 512;

struct SharedImage {
    std::vector<std::atomic<std::uint64_t>> live =
        std::vector<std::atomic<std::uint64_t>>(count_shared_pages * words_per_page);
    std::vector<std::uint64_t> copy = std::vector<std::uint64_t>(count_shared_pages * words_per_page);

    void copy_dirty(const DirtyPages& pages) {
        for (const DirtyRun& run : pages.runs())
            for (std::uint64_t i = run.offset / 8; i < (run.offset + run.size_bytes) / 8; ++i)
                copy[i] = live[i].load(std::memory_order_relaxed);
    }
};

/// Writes words all over, some alone, some as a range; says which pages.
std::vector<bool> write_all_over(DirtyLog& log, SharedImage& image, std::uint64_t seed,
                                 const std::atomic<bool>& is_over) {
    std::mt19937_64 random{seed};
    std::vector<bool> written(count_shared_pages);
    for (std::uint64_t turn = 1; !is_over.load(std::memory_order_relaxed); ++turn) {
        const std::uint64_t first = random() % (count_shared_pages * words_per_page);
        const std::uint64_t room = count_shared_pages * words_per_page - first;
        const std::uint64_t count = std::min(room, turn % 50 == 0 ? 1 + random() % 3000 : 1);
        for (std::uint64_t i = first; i < first + count; ++i)
            image.live[i].store(seed << 48 | turn, std::memory_order_relaxed);
        log.mark(first * 8, count * 8);
        for (std::uint64_t i = first / words_per_page; i <= (first + count - 1) / words_per_page; ++i)
            written[i] = true;
    }
    return written;
}

void expect_harvests_to_follow(DirtyLog& log) {
    SharedImage image;
    std::atomic<bool> is_over{false};
    std::vector<std::vector<bool>> written(2);
    std::vector<std::thread> writers;
    for (std::uint64_t i = 0; i < written.size(); ++i)
        writers.emplace_back([&, i] { written[i] = write_all_over(log, image, i + 1, is_over); });

    DirtyPages all = DirtyPages::create({.size_bytes = log.size_bytes()}).value();
    DirtyPages pages;
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds{400};
    std::uint64_t count_harvests = 0;
    for (; std::chrono::steady_clock::now() < end; ++count_harvests) {
        ASSERT_TRUE(log.harvest_into(pages));
        image.copy_dirty(pages);
        all.merge(pages);
    }
    is_over = true;
    for (std::thread& writer : writers) writer.join();
    ASSERT_TRUE(log.harvest_into(pages));
    image.copy_dirty(pages);
    all.merge(pages);

    EXPECT_GT(count_harvests, 1U);
    for (std::uint64_t page = 0; page < count_shared_pages; ++page)
        EXPECT_EQ(all.is_dirty(page * 4096), written[0][page] || written[1][page]) << page;
    for (std::uint64_t i = 0; i < image.copy.size(); ++i)
        ASSERT_EQ(image.copy[i], image.live[i].load()) << "word " << i;
    EXPECT_FALSE(log.harvest()->is_any_dirty());
}

TEST(DirtyLog, WhatIsCopiedAfterEachHarvestIsUpToDateAtTheEnd) {
    expect_harvests_to_follow(*log_of(count_shared_pages * 4096));
}

TEST(DirtyLog, WhatIsCopiedAfterEachHarvestIsUpToDateWithoutMembarrier) {
    expect_harvests_to_follow(*log_without_membarrier(count_shared_pages * 4096));
}

TEST(DirtyLog, HarvestsThatFailInBetweenLoseNothingOfWhatWritersMark) {
    if (!has_membarrier()) GTEST_SKIP() << "SKIPPED: this kernel has no membarrier";
    const auto log = log_of(count_shared_pages * 4096);
    SharedImage image;
    std::atomic<bool> is_over{false};
    std::vector<bool> written;
    std::thread writer{[&] { written = write_all_over(*log, image, 1, is_over); }};
    DirtyPages pages;
    for (int turn = 0; turn < 2'000; ++turn) {
        std::optional<FaultInjector> injector;
        if (turn % 2 == 0) injector.emplace(0, FaultInjector::Options{.only = SysCall::membarrier});
        const auto done = log->harvest_into(pages);
        EXPECT_EQ(done.has_value(), !injector || !injector->has_fired());
        image.copy_dirty(pages);
    }
    is_over = true;
    writer.join();
    ASSERT_TRUE(log->harvest_into(pages));
    image.copy_dirty(pages);
    for (std::uint64_t i = 0; i < image.copy.size(); ++i)
        ASSERT_EQ(image.copy[i], image.live[i].load()) << "word " << i;
}

}  // namespace
}  // namespace guestmem
