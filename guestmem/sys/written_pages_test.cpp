// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/written_pages.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/sys/mapping.hpp"
#include "guestmem/sys/memory_advice.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempFolder;

constexpr std::uint64_t page = page_size_bytes;

FileExtent run(std::uint64_t first, std::uint64_t count) {
    return {.offset_bytes = first * page, .size_bytes = count * page};
}

int load(std::span<std::byte> bytes, std::uint64_t number) {
    return static_cast<int>(const_cast<volatile std::byte&>(bytes[number * page]));
}
void store(std::span<std::byte> bytes, std::uint64_t number) { bytes[number * page] = std::byte{0xee}; }

/// A file of so many pages, the first half data, and a private mapping of it.
class PrivateFile {
public:
    explicit PrivateFile(std::uint64_t count_pages) {
        const std::string path = folder_.write("ram", std::string(count_pages / 2 * page, 'x'));
        const Fd file = open_file(path, OpenMode::read_write).value();
        GM_CHECK(resize_file(file, count_pages * page).has_value());
        mapping_ =
            Mapping::create(file, {.size_bytes = count_pages * page, .sharing = MapSharing::private_copy})
                .value();
    }
    [[nodiscard]] std::span<std::byte> bytes() const { return mapping_.bytes(); }

private:
    TempFolder folder_;
    Mapping mapping_;
};

/// By PAGEMAP_SCAN where the kernel has it, and by reading.
class WrittenPages : public ::testing::TestWithParam<bool> {
protected:
    static WrittenPagesOptions options() { return {.may_scan = GetParam()}; }
};
INSTANTIATE_TEST_SUITE_P(BothWays, WrittenPages, ::testing::Bool());

TEST_P(WrittenPages, OfAFileAreThoseThatWereWrittenAndNotThoseThatWereRead) {
    const PrivateFile file{64};
    EXPECT_THAT(written_pages(file.bytes(), options()).value(), IsEmpty());
    for (const std::uint64_t number : {0U, 2U, 31U, 40U, 63U}) load(file.bytes(), number);
    EXPECT_THAT(written_pages(file.bytes(), options()).value(), IsEmpty());
    for (const std::uint64_t number : {2U, 3U, 40U, 63U}) store(file.bytes(), number);
    EXPECT_THAT(written_pages(file.bytes(), options()).value(),
                ElementsAre(run(2, 2), run(40, 1), run(63, 1)));
}

TEST_P(WrittenPages, OfAPieceAreCountedFromItsFirstByte) {
    const PrivateFile file{64};
    for (const std::uint64_t number : {9U, 10U, 20U, 21U}) store(file.bytes(), number);
    EXPECT_THAT(written_pages(file.bytes().subspan(10 * page, 10 * page + 1), options()).value(),
                ElementsAre(run(0, 1), run(10, 1)));
    EXPECT_THAT(written_pages(file.bytes().first(0), options()).value(), IsEmpty());
    const auto refused = written_pages(file.bytes().subspan(1), options());
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::invalid_argument);
}

TEST_P(WrittenPages, OfAnonymousMemoryAreFound) {
    const Mapping memory = Mapping::create_anonymous({.size_bytes = 64 * page}).value();
    for (const std::uint64_t number : {5U, 6U, 50U}) store(memory.bytes(), number);
    EXPECT_THAT(written_pages(memory.bytes(), options()).value(), ElementsAre(run(5, 2), run(50, 1)));
}

TEST_P(WrittenPages, ThatWereDiscardedAreTheFilesAgain) {
    const PrivateFile file{8};
    store(file.bytes(), 1);
    store(file.bytes(), 2);
    ASSERT_TRUE(discard_pages(file.bytes().subspan(page, page)));
    EXPECT_EQ(load(file.bytes(), 1), 'x');
    EXPECT_THAT(written_pages(file.bytes(), options()).value(), ElementsAre(run(2, 1)));
}

TEST_P(WrittenPages, AgreeWithAModelOfManyRuns) {
    // More runs than one answer of the kernel has room for, and more pages than one read.
    constexpr std::uint64_t count = 10'000;
    constexpr unsigned seed = 4711;
    const PrivateFile file{count};
    std::mt19937 random{seed};
    std::set<std::uint64_t> model;
    for (int i = 0; i < 4'000; ++i) {
        const std::uint64_t number = random() % count;
        load(file.bytes(), random() % count);
        store(file.bytes(), number);
        model.insert(number);
    }
    std::set<std::uint64_t> found;
    std::uint64_t behind = 0;
    ASSERT_TRUE(written_pages(
        file.bytes(),
        [&](FileExtent piece) -> Result<void> {
            EXPECT_TRUE(found.empty() || piece.offset_bytes > behind) << "neighbors are one run";
            behind = piece.offset_bytes + piece.size_bytes;
            for (std::uint64_t at = piece.offset_bytes; at < behind; at += page) found.insert(at / page);
            return {};
        },
        options()));
    EXPECT_EQ(found, model) << "seed " << seed;
}

TEST_P(WrittenPages, EndWithTheErrorOfTheVisitor) {
    const PrivateFile file{8};
    for (const std::uint64_t number : {1U, 3U, 5U}) store(file.bytes(), number);
    int count = 0;
    const auto walked = written_pages(
        file.bytes(),
        [&](FileExtent) -> Result<void> {
            ++count;
            return Error{Errc::io, "enough"};
        },
        options());
    ASSERT_FALSE(walked);
    EXPECT_EQ(walked.error().message(), "enough");
    EXPECT_EQ(count, 1);
}

TEST_P(WrittenPages, CannotBeHadWhateverFails) {
    const PrivateFile file{8};
    store(file.bytes(), 1);
    EXPECT_EQ(for_each_fault([&] { return written_pages(file.bytes(), options()); }), 2U);
}

TEST(WrittenPagesOfAnOldKernel, AreReadWithoutBeingAsked) {
    const PrivateFile file{8};
    store(file.bytes(), 1);
    const FaultInjector injector{0, {.only = SysCall::ioctl, .os_error = ENOTTY}};
    EXPECT_THAT(written_pages(file.bytes()).value(), ElementsAre(run(1, 1)));
    EXPECT_TRUE(injector.has_fired());
}

/// Skips where the kernel has no such thing.
#define GM_ARM_OR_SKIP(name, bytes)                                      \
    auto name##_made = WriteWatch::arm(bytes);                           \
    if (!name##_made && name##_made.error().code() == Errc::unsupported) \
        GTEST_SKIP() << "SKIPPED: " << name##_made.error().message();    \
    ASSERT_TRUE(name##_made) << name##_made.error().message();           \
    WriteWatch name = std::move(*name##_made)

TEST(WriteWatch, OfAFreshMappingTakesExactlyWhatIsWritten) {
    const PrivateFile file{64};
    GM_ARM_OR_SKIP(watch, file.bytes());
    EXPECT_THAT(watch.take_written().value(), IsEmpty());
    store(file.bytes(), 3);
    store(file.bytes(), 50);
    EXPECT_THAT(watch.take_written().value(), ElementsAre(run(3, 1), run(50, 1)));
    EXPECT_THAT(watch.take_written().value(), IsEmpty());
}

TEST(WriteWatch, DoesNotTakeReadsForWrites) {
    const PrivateFile file{64};
    for (const std::uint64_t number : {1U, 40U}) load(file.bytes(), number);
    GM_ARM_OR_SKIP(watch, file.bytes());
    for (const std::uint64_t number : {2U, 41U}) load(file.bytes(), number);
    EXPECT_THAT(watch.take_written().value(), IsEmpty());
    for (const std::uint64_t number : {1U, 2U, 41U}) store(file.bytes(), number);
    EXPECT_THAT(watch.take_written().value(), ElementsAre(run(1, 2), run(41, 1)));
    load(file.bytes(), 1);
    EXPECT_THAT(watch.take_written().value(), IsEmpty());
}

TEST(WriteWatch, TakesAPageAgainThatIsWrittenAgain) {
    const PrivateFile file{8};
    GM_ARM_OR_SKIP(watch, file.bytes());
    for (int round = 0; round < 4; ++round) {
        store(file.bytes(), 3);
        store(file.bytes(), static_cast<std::uint64_t>(4 + round));
        const auto taken = watch.take_written().value();
        EXPECT_EQ(taken.front().offset_bytes, 3 * page);
        EXPECT_EQ(taken.back().offset_bytes + taken.back().size_bytes,
                  static_cast<std::uint64_t>(5 + round) * page);
    }
}

TEST(WriteWatch, SeesTheKernelsWrites) {
    const PrivateFile file{8};
    GM_ARM_OR_SKIP(watch, file.bytes());
    store(file.bytes(), 5);
    static_cast<void>(watch.take_written().value());
    int ends[2] = {};
    ASSERT_EQ(::pipe(ends), 0);
    const Fd out{ends[0]};
    const Fd in{ends[1]};
    for (const std::uint64_t number : {5U, 6U}) {
        ASSERT_EQ(::write(ends[1], "z", 1), 1);
        ASSERT_EQ(::read(ends[0], file.bytes().data() + number * page, 1), 1);
    }
    EXPECT_THAT(watch.take_written().value(), ElementsAre(run(5, 2)));
}

TEST(WriteWatch, OfAnonymousMemoryWorksAlike) {
    const Mapping memory = Mapping::create_anonymous({.size_bytes = 64 * page}).value();
    GM_ARM_OR_SKIP(watch, memory.bytes());
    load(memory.bytes(), 9);
    store(memory.bytes(), 10);
    EXPECT_THAT(watch.take_written().value(), ElementsAre(run(10, 1)));
    store(memory.bytes(), 9);
    EXPECT_THAT(watch.take_written().value(), ElementsAre(run(9, 1)));
}

TEST(WriteWatch, LosesNoWriteOfAThread) {
    constexpr std::uint64_t count = 512;
    const PrivateFile file{count};
    GM_ARM_OR_SKIP(watch, file.bytes());
    std::atomic<std::uint64_t> wave{0};
    std::thread writer{[&] {
        for (std::uint64_t i = 0; i < 200'000; ++i) {
            std::atomic_ref{*reinterpret_cast<std::uint64_t*>(file.bytes().data() + i * 37 % count * page)}
                .store(i, std::memory_order_relaxed);
            wave.store(i + 1, std::memory_order_release);
        }
    }};
    // A copy that is kept right by what is taken alone, however the writer is met.
    std::vector<std::uint64_t> copy(count);
    const auto load_word = [&](std::uint64_t number) {
        return std::atomic_ref{*reinterpret_cast<std::uint64_t*>(file.bytes().data() + number * page)}.load(
            std::memory_order_relaxed);
    };
    for (std::uint64_t number = 0; number < count; ++number) copy[number] = load_word(number);
    const auto take = [&] {
        const std::vector<FileExtent> taken = watch.take_written().value();
        for (const FileExtent& piece : taken)
            for (std::uint64_t at = 0; at < piece.size_bytes; at += page)
                copy[(piece.offset_bytes + at) / page] = load_word((piece.offset_bytes + at) / page);
    };
    while (wave.load(std::memory_order_acquire) < 200'000) take();
    writer.join();
    take();
    for (std::uint64_t number = 0; number < count; ++number)
        EXPECT_EQ(copy[number], load_word(number)) << number;
}

TEST(WriteWatch, IsForOrdinaryUsers) {
    if (::geteuid() != 0) GTEST_SKIP() << "SKIPPED: only root can become another user";
    const PrivateFile file{8};
    if (const auto made = WriteWatch::arm(file.bytes()); !made)
        GTEST_SKIP() << "SKIPPED: " << made.error().message();
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        constexpr long nobody = 65534;
        if (::syscall(SYS_setresuid, nobody, nobody, nobody) != 0 || ::prctl(PR_SET_DUMPABLE, 1) != 0)
            ::_exit(2);
        auto watch = WriteWatch::arm(file.bytes());
        if (!watch) ::_exit(3);
        store(file.bytes(), 3);
        const auto taken = watch->take_written();
        ::_exit(taken && *taken == std::vector{run(3, 1)} ? 0 : 4);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(WriteWatch, OfAnOldKernelIsUnsupportedAndSaysWhatToUse) {
    const PrivateFile file{8};
    const FaultInjector injector{0, {.only = SysCall::ioctl, .os_error = EINVAL}};
    const auto refused = WriteWatch::arm(file.bytes());
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::unsupported);
    EXPECT_THAT(refused.error().message(), HasSubstr("use written_pages()"));
}

TEST(WriteWatch, OfPartsOfPagesOrNothing) {
    const PrivateFile file{8};
    EXPECT_FALSE(WriteWatch::arm(file.bytes().subspan(1)));
    EXPECT_THAT(WriteWatch::arm({}).value().take_written().value(), IsEmpty());
}

TEST(WriteWatch, WhateverFailsIsAnErrorAndNothingIsLeft) {
    const PrivateFile file{8};
    if (const auto made = WriteWatch::arm(file.bytes()); !made)
        GTEST_SKIP() << "SKIPPED: " << made.error().message();
    EXPECT_EQ(for_each_fault([&]() -> Result<std::vector<FileExtent>> {
                  WriteWatch watch = GM_TRY(WriteWatch::arm(file.bytes()));
                  return watch.take_written();
              }),
              5U);  // userfaultfd, its two requests, open, the scan
}

// -------------------------------------------------------------------------------------------------- one for many

/// Skips where the kernel cannot watch.
class WriteWatcherTest : public ::testing::Test {
protected:
    void SetUp() override {
        auto made = WriteWatcher::create();
        if (!made && made.error().code() == Errc::unsupported)
            GTEST_SKIP() << "SKIPPED: " << made.error().message();
        ASSERT_TRUE(made) << made.error().message();
        watcher_ = std::move(*made);
    }
    [[nodiscard]] WriteWatch arm(const PrivateFile& file) const {
        return watcher_->arm(file.bytes()).value();
    }
    std::optional<WriteWatcher> watcher_;
};

TEST_F(WriteWatcherTest, GivesEachOfManyWatchesItsOwnAnswers) {
    constexpr std::uint64_t count = 50;
    std::vector<std::unique_ptr<PrivateFile>> files;
    std::vector<WriteWatch> watches;
    for (std::uint64_t i = 0; i < count; ++i) {
        files.push_back(std::make_unique<PrivateFile>(64));
        watches.push_back(arm(*files.back()));
    }
    for (std::uint64_t round = 0; round < 3; ++round) {
        for (std::uint64_t i = 0; i < count; i += 2) store(files[i]->bytes(), (i + round) % 64);
        for (std::uint64_t i = 0; i < count; ++i) {
            const auto taken = watches[i].take_written().value();
            if (i % 2 == 0) {
                EXPECT_THAT(taken, ElementsAre(run((i + round) % 64, 1))) << i;
            } else {
                EXPECT_THAT(taken, IsEmpty()) << i;
            }
        }
    }
}

TEST_F(WriteWatcherTest, OfPiecesOfOneMappingKeepsThemApart) {
    const PrivateFile file{64};
    WriteWatch low = watcher_->arm(file.bytes().first(32 * page)).value();
    WriteWatch high = watcher_->arm(file.bytes().subspan(32 * page)).value();
    for (const std::uint64_t number : {31U, 32U}) store(file.bytes(), number);
    EXPECT_THAT(low.take_written().value(), ElementsAre(run(31, 1)));
    EXPECT_THAT(high.take_written().value(), ElementsAre(run(0, 1)));
    low = WriteWatch{};
    store(file.bytes(), 31);
    store(file.bytes(), 33);
    EXPECT_THAT(high.take_written().value(), ElementsAre(run(1, 1)));
}

TEST_F(WriteWatcherTest, GoesOnWhenOneOfItsWatchesOrItselfIsGone) {
    const PrivateFile first{8};
    const PrivateFile second{8};
    std::optional<WriteWatch> dropped = arm(first);
    WriteWatch kept = arm(second);
    store(first.bytes(), 1);
    store(second.bytes(), 2);
    dropped.reset();
    EXPECT_THAT(kept.take_written().value(), ElementsAre(run(2, 1)));
    WriteWatch again = arm(first);
    EXPECT_THAT(again.take_written().value(), ElementsAre(run(1, 1))) << "what is a copy of our own";
    watcher_.reset();
    store(first.bytes(), 3);
    store(second.bytes(), 4);
    EXPECT_THAT(again.take_written().value(), ElementsAre(run(3, 1)));
    EXPECT_THAT(kept.take_written().value(), ElementsAre(run(4, 1)));
}

TEST_F(WriteWatcherTest, OfWhatAnotherOneWatchesIsAnError) {
    const PrivateFile file{8};
    WriteWatch watch = arm(file);
    const auto other = WriteWatch::arm(file.bytes());
    EXPECT_FALSE(other) << "one descriptor watches a page";
    store(file.bytes(), 5);
    EXPECT_THAT(watch.take_written().value(), ElementsAre(run(5, 1)));
}

TEST_F(WriteWatcherTest, InAChildArmsNothingAndLeavesTheParentsWatchesAlone) {
    const PrivateFile file{8};
    WriteWatch watch = arm(file);
    const PrivateFile of_other{8};
    WriteWatch other = arm(of_other);
    store(file.bytes(), 1);
    EXPECT_THAT(watch.take_written().value(), ElementsAre(run(1, 1)));
    EXPECT_TRUE(watcher_->is_of_this_process());
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        if (watcher_->is_of_this_process()) ::_exit(2);
        const PrivateFile mine{8};
        const auto refused = watcher_->arm(mine.bytes());
        if (refused || refused.error().code() != Errc::invalid_argument) ::_exit(3);
        watch = WriteWatch{};
        other = WriteWatch{};
        watcher_.reset();
        store(file.bytes(), 7);
        auto own = WriteWatch::arm(mine.bytes());
        if (!own) ::_exit(4);
        store(mine.bytes(), 3);
        const auto taken = own->take_written();
        ::_exit(taken && *taken == std::vector{run(3, 1)} ? 0 : 5);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0);
    EXPECT_THAT(watch.take_written().value(), IsEmpty()) << "the child writes to copies of its own";
    store(file.bytes(), 2);
    EXPECT_THAT(watch.take_written().value(), ElementsAre(run(2, 1)));
}

TEST_F(WriteWatcherTest, WhateverFailsIsAnErrorAndNothingIsLeft) {
    const PrivateFile first{8};
    const PrivateFile second{8};
    EXPECT_EQ(for_each_fault([&]() -> Result<std::vector<FileExtent>> {
                  const WriteWatcher watcher = GM_TRY(WriteWatcher::create());
                  WriteWatch one = GM_TRY(watcher.arm(first.bytes()));
                  WriteWatch other = GM_TRY(watcher.arm(second.bytes()));
                  GM_TRY(one.take_written());
                  return other.take_written();
              }),
              8U);  // userfaultfd and its request, a request for each, and for each an open and the scan
}

TEST_F(WriteWatcherTest, OfPartsOfPagesIsAnErrorAndOfNothingIsNothing) {
    const PrivateFile file{8};
    EXPECT_EQ(watcher_->arm(file.bytes().subspan(1)).error().code(), Errc::invalid_argument);
    EXPECT_THAT(watcher_->arm({})->take_written().value(), IsEmpty());
}

}  // namespace
}  // namespace guestmem
