// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/dirty_tracker.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <limits>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "guestmem/mem/testing/store_buffering.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/membarrier.hpp"

namespace guestmem {
namespace {

constexpr std::uint64_t whole_space = std::numeric_limits<std::uint64_t>::max();

std::unique_ptr<DirtyTracker> tracker_with_membarrier(std::uint64_t size_bytes) {
    return std::make_unique<DirtyTracker>(size_bytes);
}

/// A tracker of a process that cannot have membarrier: all marks go through the stand-in while it is off.
std::unique_ptr<DirtyTracker> tracker_without_membarrier(std::uint64_t size_bytes) {
    const FaultInjector injector{0, {.only = SysCall::membarrier, .os_error = ENOSYS}};
    auto tracker = std::make_unique<DirtyTracker>(size_bytes);
    EXPECT_TRUE(injector.has_fired());
    return tracker;
}

/// Each test runs with membarrier and without.
enum class Barrier : std::uint8_t { membarrier, missing };

class DirtyTrackerWith : public ::testing::TestWithParam<Barrier> {
protected:
    /// Makes membarrier fail, for the whole test, where it is missing.
    void SetUp() override {
        if (GetParam() == Barrier::missing)
            injector_ = std::make_unique<FaultInjector>(
                0, FaultInjector::Options{
                       .only = SysCall::membarrier, .os_error = ENOSYS, .repeat = whole_space});
    }
    [[nodiscard]] static std::unique_ptr<DirtyTracker> tracker_of(std::uint64_t size_bytes) {
        return tracker_with_membarrier(size_bytes);
    }

private:
    std::unique_ptr<FaultInjector> injector_;
};
INSTANTIATE_TEST_SUITE_P(Barriers, DirtyTrackerWith, ::testing::Values(Barrier::membarrier, Barrier::missing),
                         [](const auto& with) {
                             return with.param == Barrier::membarrier ? "membarrier" : "missing";
                         });

TEST_P(DirtyTrackerWith, IsOffAtFirst) {
    const auto tracker = tracker_of(8192);
    EXPECT_FALSE(tracker->is_on());
    EXPECT_EQ(tracker->log(), nullptr);
    EXPECT_EQ(tracker->size_bytes(), 8192U);
    tracker->mark_written(0, 1);
    tracker->mark_written(8192, 1);
    tracker->mark_written(whole_space, whole_space);
    tracker->mark_written(0, 0);
    const auto pages = tracker->harvest();
    ASSERT_FALSE(pages);
    EXPECT_EQ(pages.error().code(), Errc::invalid_argument);
}

TEST_P(DirtyTrackerWith, NotesWhatIsWrittenWhileItIsOn) {
    const auto tracker = tracker_of(10 * 4096);
    tracker->mark_written(0, 1);
    ASSERT_TRUE(tracker->start());
    EXPECT_TRUE(tracker->is_on());
    tracker->mark_written(4096, 1);
    tracker->mark_written(3 * 4096 - 1, 2);
    tracker->mark_written(9 * 4096, whole_space);
    EXPECT_EQ(tracker->harvest()->runs(), (std::vector{DirtyRun{4096, 3 * 4096}, DirtyRun{9 * 4096, 4096}}));
    EXPECT_FALSE(tracker->harvest()->is_any_dirty());
    ASSERT_TRUE(tracker->stop());
    tracker->mark_written(0, 1);
    EXPECT_FALSE(tracker->harvest());
    EXPECT_EQ(tracker->log(), nullptr);
}

TEST_P(DirtyTrackerWith, HarvestsIntoMemoryThatIsThere) {
    const auto tracker = tracker_of(10 * 4096);
    DirtyPages pages;
    EXPECT_FALSE(tracker->harvest_into(pages));
    ASSERT_TRUE(tracker->start());
    tracker->mark_written(4096, 1);
    ASSERT_TRUE(tracker->harvest_into(pages));
    EXPECT_EQ(pages.runs(), (std::vector{DirtyRun{4096, 4096}}));
    ASSERT_TRUE(tracker->stop());
    EXPECT_FALSE(tracker->harvest_into(pages));
    EXPECT_FALSE(pages.is_any_dirty()) << "the pages of the harvest before";
}

TEST_P(DirtyTrackerWith, SwitchingTwiceIsAnErrorAndChangesNothing) {
    const auto tracker = tracker_of(4096);
    const auto off = tracker->stop();
    ASSERT_FALSE(off);
    EXPECT_EQ(off.error().code(), Errc::invalid_argument);
    ASSERT_TRUE(tracker->start());
    tracker->mark_written(0, 1);
    DirtyLog* const log = tracker->log();
    for (const std::uint64_t page_bytes : {4096U, 64U}) {
        const auto on = tracker->start(page_bytes);
        ASSERT_FALSE(on);
        EXPECT_EQ(on.error().code(), Errc::busy);
    }
    EXPECT_EQ(tracker->log(), log);
    EXPECT_TRUE(log->is_marked(0));
}

TEST_P(DirtyTrackerWith, StartsEmptyAgainWithTheSameLogForTheSamePageSize) {
    const auto tracker = tracker_of(1 << 20);
    ASSERT_TRUE(tracker->start());
    DirtyLog* const first = tracker->log();
    tracker->mark_written(0, 1 << 20);
    ASSERT_TRUE(tracker->stop());

    first->mark(4096, 1);  // a writer that was late
    ASSERT_TRUE(tracker->start(65536));
    DirtyLog* const second = tracker->log();
    EXPECT_NE(second, first);
    EXPECT_EQ(second->page_bytes(), 65536U);
    tracker->mark_written(0, 1);
    EXPECT_EQ(tracker->harvest()->runs(), (std::vector{DirtyRun{0, 65536}}));
    ASSERT_TRUE(tracker->stop());

    first->mark(8192, 1);
    ASSERT_TRUE(tracker->start());
    EXPECT_EQ(tracker->log(), first);
    EXPECT_FALSE(tracker->harvest()->is_any_dirty());
    first->mark(8192, 1);
    EXPECT_TRUE(tracker->harvest()->is_dirty(8192));
}

TEST_P(DirtyTrackerWith, TakesEveryPageSizeThatTheGridTakesAndNoOther) {
    const auto tracker = tracker_of(100'000);
    for (std::uint64_t page = min_dirty_page_bytes; page <= max_dirty_page_bytes; page *= 2) {
        ASSERT_TRUE(tracker->start(page)) << page;
        tracker->mark_written(0, 1);
        EXPECT_EQ(tracker->harvest()->count_dirty(), 1U);
        ASSERT_TRUE(tracker->stop());
    }
    for (const std::uint64_t page : {std::uint64_t{0}, min_dirty_page_bytes / 2, std::uint64_t{4097},
                                     max_dirty_page_bytes * 2, whole_space}) {
        const auto started = tracker->start(page);
        ASSERT_FALSE(started) << page;
        EXPECT_EQ(started.error().code(), Errc::invalid_argument);
        EXPECT_FALSE(tracker->is_on());
    }
}

// ---- failures ----

TEST(DirtyTracker, WhoseBarrierFailsAtTheStartStaysOff) {
    if (!prepare_membarrier()) GTEST_SKIP() << "SKIPPED: this kernel has no membarrier";
    DirtyTracker tracker{8192};
    {
        // Call 0 is the registration by the log, which it can do without; call 1 the barrier.
        const FaultInjector injector{1, {.only = SysCall::membarrier}};
        const auto started = tracker.start();
        ASSERT_FALSE(started);
        EXPECT_EQ(started.error().code(), Errc::exhausted);
        EXPECT_TRUE(injector.has_fired());
    }
    EXPECT_FALSE(tracker.is_on());
    tracker.mark_written(0, 1);
    EXPECT_FALSE(tracker.harvest());
    EXPECT_FALSE(tracker.stop());

    ASSERT_TRUE(tracker.start());
    EXPECT_FALSE(tracker.harvest()->is_any_dirty());
    tracker.mark_written(4096, 1);
    EXPECT_EQ(tracker.harvest()->count_dirty(), 1U);
}

TEST(DirtyTracker, GoesOnWithALogThatCouldNotRegister) {
    if (!prepare_membarrier()) GTEST_SKIP() << "SKIPPED: this kernel has no membarrier";
    DirtyTracker tracker{8192};
    {
        const FaultInjector injector{0, {.only = SysCall::membarrier}};
        EXPECT_TRUE(tracker.start());
        EXPECT_TRUE(injector.has_fired());
    }
    tracker.mark_written(4096, 1);
    tracker.mark_written(4096, 1);
    EXPECT_EQ(tracker.harvest()->count_dirty(), 1U);
}

TEST(DirtyTracker, AHarvestThatFailsKeepsTheMarks) {
    if (!prepare_membarrier()) GTEST_SKIP() << "SKIPPED: this kernel has no membarrier";
    DirtyTracker tracker{8192};
    ASSERT_TRUE(tracker.start());
    tracker.mark_written(4096, 1);
    {
        const FaultInjector injector{0, {.only = SysCall::membarrier}};
        EXPECT_FALSE(tracker.harvest());
    }
    EXPECT_EQ(tracker.harvest()->runs(), (std::vector{DirtyRun{4096, 4096}}));
}

// ---- the litmus: does the switch lose a write? ----

constexpr std::uint64_t litmus_bytes = testing::count_litmus_cells * 4096;

/// The mark is what a writer does while start() runs, on one tracker that goes on and off, or each time on another.
class Started {
public:
    using MakeTracker = std::unique_ptr<DirtyTracker> (*)(std::uint64_t size_bytes);
    enum class Trackers : std::uint8_t { one, many };
    Started(MakeTracker make, Trackers trackers)
        : make_(make), trackers_(trackers), tracker_(make(litmus_bytes)) {}

    void prepare() {
        if (trackers_ == Trackers::many) {
            tracker_ = make_(litmus_bytes);
        } else if (tracker_->is_on()) {
            EXPECT_TRUE(tracker_->stop());
        }
    }
    void look(std::uint64_t) { tracker_->mark_written(0, 0); }
    void mark(std::uint64_t cell) { tracker_->mark_written(cell * 4096, 8); }
    void take() { EXPECT_TRUE(tracker_->start()); }
    [[nodiscard]] bool is_marked(std::uint64_t cell) const { return tracker_->log()->is_marked(cell * 4096); }

private:
    MakeTracker make_;
    Trackers trackers_;
    std::unique_ptr<DirtyTracker> tracker_;
};

/// The same switch without a barrier.
class StartedWithoutBarrier {
public:
    void prepare() {
        log_.store(nullptr, std::memory_order_release);
        for (auto& mark : marks_) mark.store(0, std::memory_order_relaxed);
    }
    void look(std::uint64_t) const { EXPECT_EQ(log_.load(std::memory_order_relaxed), nullptr); }
    void mark(std::uint64_t cell) {
        std::atomic_signal_fence(std::memory_order_seq_cst);
        if (log_.load(std::memory_order_relaxed) != nullptr) marks_[cell].store(1, std::memory_order_release);
    }
    void take() { log_.store(&marks_, std::memory_order_release); }
    [[nodiscard]] bool is_marked(std::uint64_t cell) const { return marks_[cell].load() != 0; }

private:
    alignas(64) std::array<std::atomic<std::uint64_t>, testing::count_litmus_cells> marks_{};
    alignas(64) std::atomic<void*> log_{nullptr};
};

TEST(DirtyTrackerLitmus, NoWriteIsLostBetweenOffAndOn) {
    const testing::LitmusResult result =
        testing::run_litmus(Started{tracker_with_membarrier, Started::Trackers::one});
    testing::expect_both_orders("DirtyTracker::start", result);
    EXPECT_EQ(result.count_lost, 0U);
}

TEST(DirtyTrackerLitmus, NoWriteIsLostBetweenOffAndOnWithoutMembarrier) {
    const testing::LitmusResult result =
        testing::run_litmus(Started{tracker_without_membarrier, Started::Trackers::one});
    testing::expect_both_orders("DirtyTracker::start without membarrier", result);
    EXPECT_EQ(result.count_lost, 0U);
}

TEST(DirtyTrackerLitmus, NoWriteIsLostWhenATrackerIsFirstSwitchedOnWithoutMembarrier) {
    const testing::LitmusResult result =
        testing::run_litmus(Started{tracker_without_membarrier, Started::Trackers::many});
    testing::expect_both_orders("the first DirtyTracker::start without membarrier", result);
    EXPECT_EQ(result.count_lost, 0U);
}

TEST(DirtyTrackerLitmus, ASwitchWithoutAnyBarrierShowsWhatTheLitmusFinds) {
    // How often a write is lost is the processor's business, so the number is told, not asserted.
    const testing::LitmusResult result = testing::run_litmus(StartedWithoutBarrier{});
    testing::expect_both_orders("a switch without any barrier", result);
    RecordProperty("lost", static_cast<int>(result.count_lost));
}

// ---- a migration ----

constexpr std::uint64_t count_pages = 128;
constexpr std::uint64_t words_per_page = 512;
constexpr std::uint64_t count_words = count_pages * words_per_page;

class Memory {
public:
    explicit Memory(DirtyTracker& tracker) : tracker_(tracker) {}

    /// What a device does: mostly one word, sometimes many.
    void write_until(const std::atomic<bool>& is_over, std::uint64_t seed) {
        std::mt19937_64 random{seed};
        for (std::uint64_t turn = 1; !is_over.load(std::memory_order_relaxed); ++turn) {
            const std::uint64_t first = random() % count_words;
            const std::uint64_t count = std::min(count_words - first, turn % 64 == 0 ? random() % 2'000 : 1);
            for (std::uint64_t i = first; i < first + count; ++i)
                words_[i].store(seed << 48 | turn, std::memory_order_relaxed);
            tracker_.mark_written(first * 8, count * 8);
            count_writes.fetch_add(1, std::memory_order_relaxed);
        }
    }
    void copy(DirtyRun run, std::vector<std::uint64_t>& image) const {
        for (std::uint64_t i = run.offset / 8; i < (run.offset + run.size_bytes) / 8; ++i)
            image[i] = words_[i].load(std::memory_order_relaxed);
    }
    void copy(const DirtyPages& pages, std::vector<std::uint64_t>& image) const {
        pages.for_each_run([&](DirtyRun run) { copy(run, image); });
    }

    std::atomic<std::uint64_t> count_writes{0};

private:
    DirtyTracker& tracker_;
    std::vector<std::atomic<std::uint64_t>> words_ = std::vector<std::atomic<std::uint64_t>>(count_words);
};

/// Switches on under running writers, copies everything, then what got dirty, and at last what was left.
std::vector<std::uint64_t> migrate(DirtyTracker& tracker, Memory& memory, std::uint64_t seed) {
    std::atomic<bool> is_over{false};
    std::vector<std::thread> writers;
    for (std::uint64_t i = 0; i < 2; ++i)
        writers.emplace_back([&, i] { memory.write_until(is_over, seed + i); });
    const std::uint64_t before = memory.count_writes;
    while (memory.count_writes < before + 100) std::this_thread::yield();

    std::vector<std::uint64_t> image(count_words);
    EXPECT_TRUE(tracker.start());
    memory.copy(DirtyRun{0, count_words * 8}, image);
    for (int round = 0; round < 20; ++round) {
        const auto pages = tracker.harvest();
        EXPECT_TRUE(pages);
        memory.copy(*pages, image);
    }
    is_over = true;
    for (std::thread& writer : writers) writer.join();
    memory.copy(tracker.harvest().value(), image);
    return image;
}

TEST_P(DirtyTrackerWith, ACopyUnderRunningWritersIsCompleteAtTheEnd) {
    const auto tracker = tracker_of(count_words * 8);
    Memory memory{*tracker};
    for (std::uint64_t cycle = 0; cycle < 40; ++cycle) {
        const std::vector<std::uint64_t> image = migrate(*tracker, memory, 2 * cycle + 1);
        std::vector<std::uint64_t> truth(count_words);
        memory.copy(DirtyRun{0, count_words * 8}, truth);
        ASSERT_EQ(std::ranges::mismatch(image, truth).in1 - image.begin(), image.end() - image.begin())
            << "the first word that differs, in cycle " << cycle;
        ASSERT_TRUE(tracker->stop());
    }
}

TEST_P(DirtyTrackerWith, SwitchesAsOftenAsOneLikesWhileOthersWrite) {
    const auto tracker = tracker_of(count_words * 8);
    Memory memory{*tracker};
    std::atomic<bool> is_over{false};
    std::vector<std::thread> writers;
    for (std::uint64_t i = 0; i < 2; ++i)
        writers.emplace_back([&, i] { memory.write_until(is_over, i + 1); });
    while (memory.count_writes < 100) std::this_thread::yield();
    std::uint64_t count_dirty = 0;
    for (std::uint64_t turn = 0; turn < 1'000 || count_dirty == 0; ++turn) {
        ASSERT_TRUE(tracker->start(std::uint64_t{64} << (turn % 8)));
        if (turn % 16 == 0) std::this_thread::yield();
        count_dirty += tracker->harvest()->count_dirty();
        ASSERT_TRUE(tracker->stop());
    }
    is_over = true;
    for (std::thread& writer : writers) writer.join();
    EXPECT_GT(count_dirty, 0U);
    EXPECT_FALSE(tracker->is_on());
}

}  // namespace
}  // namespace guestmem
