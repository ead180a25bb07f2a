// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/pager_work.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/paging/testing/lazy_memory.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/memory_advice.hpp"

namespace guestmem {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;
using namespace testing;  // NOLINT(google-build-using-namespace): the words of tests

// ------------------------------------------------------------------------------------------------- failure

/// With poison, and as on a kernel without.
class PagerFailure : public PagerTest, public ::testing::WithParamInterface<bool> {
protected:
    PagerOptions with(std::shared_ptr<PageSource> source) {
        PagerOptions options = PagerTest::with(std::move(source));
        options.may_poison = GetParam();
        options.on_failure = [this](const Error& error) {
            told = error.message();
            ++count_calls;  // behind it: who reads the one may read the other
        };
        return options;
    }
    /// After pages 0 to 15 came, the source does that for all others.
    std::shared_ptr<MadeUpSource> good_then(MadeUpSource::Fetch bad) {
        return std::make_shared<MadeUpSource>(64, [bad](ImagePart wanted, PageSink& sink) {
            return wanted.offset_bytes == 0 ? MadeUpSource::give(wanted, sink) : bad(wanted, sink);
        });
    }
    void expect_failure(std::shared_ptr<MadeUpSource> source, const std::string& why) {
        const auto bytes = begin(with(std::move(source)));
        EXPECT_EQ(look(bytes, 5), word_of(5));
        EXPECT_TRUE(pager->health());
        EXPECT_EQ(look(bytes, 20), std::nullopt);
        const auto health = pager->health();
        ASSERT_FALSE(health);
        EXPECT_THAT(health.error().message(), HasSubstr("0x10000 of the image"));
        EXPECT_THAT(health.error().message(), HasSubstr(why));
        EXPECT_EQ(look(bytes, 20), std::nullopt) << "for good";
        EXPECT_EQ(look(bytes, 40), std::nullopt);
        EXPECT_EQ(look(bytes, 6), word_of(6)) << "what is there stays";
        wait_until_told();
        EXPECT_EQ(told, health.error().message());
        EXPECT_FALSE(pager->wait_until_filled(20s));
        wait_for([](const PagerCounters& counters) { return counters.lost_pages == 2; });
    }
    /// It is told behind those who waited, and once.
    void wait_until_told() const {
        const auto limit = std::chrono::steady_clock::now() + 20s;
        while (count_calls == 0 && std::chrono::steady_clock::now() < limit)
            std::this_thread::sleep_for(100us);
        EXPECT_EQ(count_calls, 1);
    }
    /// The thread that calls on_failure ends before what it writes to.
    void TearDown() override {
        memory.reset();
        pager.reset();
    }

    std::atomic<int> count_calls{0};
    std::string told;
};
INSTANTIATE_TEST_SUITE_P(WithAndWithoutPoison, PagerFailure, ::testing::Bool());

TEST_P(PagerFailure, OfASourceIsAFaultAndAnErrorAndNoWait) {
    expect_failure(good_then([](ImagePart, PageSink&) -> Result<void> {
                       return Error{Errc::unavailable, "the server is gone"};
                   }),
                   "the server is gone");
}

TEST_P(PagerFailure, IsASourceThatGivesNothing) {
    expect_failure(good_then([](ImagePart, PageSink&) -> Result<void> { return {}; }),
                   "the page at 0x10000 did not come");
}

TEST_P(PagerFailure, IsASourceThatGivesAnotherPage) {
    expect_failure(
        good_then([](ImagePart, PageSink& sink) { return MadeUpSource::give(part_of(63, 1), sink); }),
        "the page at 0x10000 did not come");
}

TEST_P(PagerFailure, IsASourceThatGivesOnlySomePages) {
    const auto bytes = begin(
        with(good_then([](ImagePart, PageSink& sink) { return MadeUpSource::give(part_of(16, 15), sink); })));
    EXPECT_EQ(look(bytes, 20), word_of(20)) << "that one came";
    EXPECT_EQ(look(bytes, 31), std::nullopt);
    EXPECT_THAT(pager->health().error().message(), HasSubstr("the page at 0x1f000 did not come"));
    wait_until_told();
}

TEST_P(PagerFailure, IsASourceThatGivesWhatIsNotInTheImage) {
    for (const ImagePart outside :
         {part_of(64, 1), part_of(63, 2), ImagePart{.offset_bytes = 1, .size_bytes = page},
          ImagePart{.offset_bytes = 0, .size_bytes = 17}, ImagePart{.offset_bytes = 0, .size_bytes = 0},
          part_of(0, max_part_bytes / page + 1),
          ImagePart{.offset_bytes = ~std::uint64_t{0} - page + 1, .size_bytes = page}}) {
        count_calls = 0;
        expect_failure(good_then([outside](ImagePart wanted, PageSink& sink) -> Result<void> {
                           const std::vector<std::byte> bytes(outside.size_bytes, std::byte{1});
                           EXPECT_FALSE(sink.take_pages(outside.offset_bytes, bytes));
                           // No notice is taken of that, and of nothing behind it.
                           EXPECT_FALSE(MadeUpSource::give(wanted, sink));
                           return {};
                       }),
                       "");
    }
}

TEST_P(PagerFailure, IsASourceThatTakesNoNoticeOfARefusal) {
    const auto bytes = begin(with(good_then([](ImagePart wanted, PageSink& sink) -> Result<void> {
        EXPECT_FALSE(sink.take_zeros(part_of(60, 5)));
        return MadeUpSource::give(wanted, sink);
    })));
    EXPECT_EQ(look(bytes, 20), std::nullopt);
    EXPECT_THAT(pager->health().error().message(), HasSubstr("zeros at 0x3c000 of an image of 0x40000"));
}

TEST_P(PagerFailure, WakesAllWhoWait) {
    std::atomic<int> count_lost{0};
    std::atomic<bool> is_open{false};
    const auto bytes = begin(with(good_then([&](ImagePart, PageSink&) -> Result<void> {
        while (!is_open) std::this_thread::sleep_for(1ms);
        return Error{Errc::io, "no"};
    })));
    std::vector<std::thread> threads;
    for (std::uint64_t i = 0; i < 6; ++i)
        threads.emplace_back([&, i] {
            GM_CHECK(prepare_thread_for_guest_memory().has_value());
            if (!look(bytes, 16 + 8 * (i / 2))) ++count_lost;
        });
    std::this_thread::sleep_for(20ms);
    is_open = true;
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(count_lost, 6);
    wait_until_told();
}

TEST_P(PagerFailure, LeavesRemovedPagesToBeZeros) {
    const auto bytes =
        begin(with(good_then([](ImagePart, PageSink&) -> Result<void> { return Error{Errc::io, "no"}; })));
    EXPECT_EQ(look(bytes, 20), std::nullopt);
    ASSERT_TRUE(discard_pages(bytes.subspan(30 * page, 2 * page)));
    EXPECT_EQ(look(bytes, 30), 0U);
    EXPECT_EQ(look(bytes, 32), std::nullopt);
}

TEST_P(PagerFailure, IsToldWhenThoseWhoWaitHaveTheirAnswer) {
    PagerOptions options =
        with(good_then([](ImagePart, PageSink&) -> Result<void> { return Error{Errc::io, "no"}; }));
    std::atomic<bool> is_answered{false};
    std::atomic<bool> has_waited_in_vain{false};
    options.on_failure = [&](const Error&) {
        const auto limit = std::chrono::steady_clock::now() + 5s;
        while (!is_answered && std::chrono::steady_clock::now() < limit) std::this_thread::sleep_for(1ms);
        has_waited_in_vain = !is_answered;
        ++count_calls;
    };
    const auto bytes = begin(std::move(options));
    EXPECT_EQ(look(bytes, 20), std::nullopt);
    is_answered = true;
    wait_until_told();
    EXPECT_FALSE(has_waited_in_vain);
    memory.reset();
    pager.reset();
}

TEST_P(PagerFailure, AheadOfATouchIsOneToo) {
    PagerOptions options =
        with(good_then([](ImagePart, PageSink&) -> Result<void> { return Error{Errc::io, "no"}; }));
    options.is_filled = true;
    options.ahead_bytes = 16 * page;
    const auto bytes = begin(std::move(options));
    EXPECT_THAT(pager->wait_until_filled(20s).error().message(), HasSubstr("0x10000"));
    EXPECT_EQ(look(bytes, 2), word_of(2));
    EXPECT_EQ(look(bytes, 20), std::nullopt);
}

// ------------------------------------------------------------------------------------ removals, amid more

TEST_F(PagerTest, AnswersTouchesAmidAStormOfRemovals) {
    // Longer than the patience: each removal is heard, and none of them is a failure.
    constexpr std::uint64_t count = 32'768;
    PagerOptions options = with(std::make_shared<MadeUpSource>(count));
    options.patience = 100ms;
    const auto bytes = begin(std::move(options));
    std::atomic<bool> is_over{false};
    std::thread balloon{[&] {
        while (!is_over)
            for (std::uint64_t number = count / 2; number < count && !is_over; ++number)
                EXPECT_TRUE(discard_pages(bytes.subspan(number * page, page)));
    }};
    wait_for([](const PagerCounters& counters) { return counters.removed_pages > 100; });
    const auto end = std::chrono::steady_clock::now() + 1s;
    for (std::uint64_t number = 0; number < count / 2 && std::chrono::steady_clock::now() < end; number += 16)
        EXPECT_EQ(look(bytes, number), word_of(number)) << number;
    is_over = true;
    balloon.join();
    EXPECT_TRUE(pager->health());
}

TEST_F(PagerTest, WhoWaitsForAPageThatIsUnmappedIsWokenAndNobodyElseSuffers) {
    std::atomic<bool> is_open{false};
    const auto source =
        std::make_shared<MadeUpSource>(64, [&](ImagePart wanted, PageSink& sink) -> Result<void> {
            while (!is_open) std::this_thread::sleep_for(1ms);
            return MadeUpSource::give(wanted, sink);
        });
    PagerOptions options = with(source);
    options.regions = {part_of(0, 32), part_of(32, 32)};
    const auto bytes = begin(std::move(options));
    std::thread reader{[&] {
        GM_CHECK(prepare_thread_for_guest_memory().has_value());
        EXPECT_EQ(look(bytes, 5), std::nullopt);
    }};
    while (source->fetched().empty()) std::this_thread::sleep_for(1ms);
    std::thread remover{[&] { EXPECT_EQ(::munmap(bytes.data() + 5 * page, page), 0); }};
    std::this_thread::sleep_for(20ms);
    is_open = true;
    remover.join();
    reader.join();
    EXPECT_EQ(look(bytes, 6), word_of(6));
    const auto other = pager->memory(1).value();
    EXPECT_EQ(look(other->bytes(), 9), word_of(41));
    EXPECT_TRUE(pager->health());
}

TEST_F(PagerTest, ARegionThatIsUnmappedWholeIsDone) {
    PagerOptions options = with(std::make_shared<MadeUpSource>(64));
    options.regions = {part_of(0, 32), part_of(32, 32)};
    const auto bytes = begin(std::move(options));
    ASSERT_EQ(::munmap(bytes.data(), 32 * page), 0);
    wait_for([](const PagerCounters& counters) { return counters.removed_pages == 32; });
    const auto other = pager->memory(1).value();
    for (std::uint64_t number = 0; number < 32; ++number)
        EXPECT_EQ(look(other->bytes(), number), word_of(32 + number));
    EXPECT_TRUE(pager->health());
    EXPECT_TRUE(pager->wait_until_filled(20s));
}

TEST_F(PagerTest, HearsOfRemovalsInTheMiddleOfALongFetch) {
    std::atomic<bool> is_heard{false};
    const auto source =
        std::make_shared<MadeUpSource>(64, [&](ImagePart wanted, PageSink& sink) -> Result<void> {
            const auto limit = std::chrono::steady_clock::now() + 10s;
            while (!is_heard && std::chrono::steady_clock::now() < limit) {
                GM_TRY(MadeUpSource::give({.offset_bytes = wanted.offset_bytes, .size_bytes = page}, sink));
                std::this_thread::sleep_for(1ms);
            }
            EXPECT_TRUE(is_heard);
            return MadeUpSource::give(wanted, sink);
        });
    const auto bytes = begin(with(source));
    std::thread reader{[&] {
        GM_CHECK(prepare_thread_for_guest_memory().has_value());
        EXPECT_EQ(look(bytes, 20), word_of(20));
    }};
    while (source->fetched().empty()) std::this_thread::sleep_for(1ms);
    ASSERT_TRUE(discard_pages(bytes.subspan(40 * page, page)));
    EXPECT_EQ(look(bytes, 40), 0U);
    is_heard = true;
    reader.join();
    EXPECT_TRUE(pager->health());
    memory.reset();
    pager.reset();
}

// -------------------------------------------------------------------------------------------- pushed pages

TEST_P(PagerFailure, IsAPushedPageThatDoesNotComeInTime) {
    auto source = std::make_shared<MadeUpSource>(64, [](ImagePart, PageSink&) -> Result<void> { return {}; });
    source->pushed = EventFd::create().value();
    PagerOptions options = with(source);
    options.patience = 50ms;
    const auto bytes = begin(std::move(options));
    const auto before = std::chrono::steady_clock::now();
    EXPECT_EQ(look(bytes, 17), std::nullopt);
    EXPECT_GE(std::chrono::steady_clock::now() - before, 50ms);
    EXPECT_EQ(pager->health().error().code(), Errc::timed_out);
    EXPECT_THAT(pager->health().error().message(), HasSubstr("0x11000"));
    wait_until_told();
}

TEST_P(PagerFailure, IsAnErrorOfAPush) {
    auto source = std::make_shared<MadeUpSource>(64, [](ImagePart, PageSink&) -> Result<void> { return {}; });
    source->pushed = EventFd::create().value();
    source->on_arrival = [](PageSink&) -> Result<bool> { return Error{Errc::corrupt, "a torn stream"}; };
    const EventFd& bell = *source->pushed;
    const auto bytes = begin(with(source));
    ASSERT_TRUE(bell.ring());
    EXPECT_EQ(look(bytes, 17), std::nullopt);
    EXPECT_THAT(pager->health().error().message(), HasSubstr("a torn stream"));
}

TEST_P(PagerFailure, IsAPushedPageThatDoesNotComeInTimeOfASourceThatCannotBeAsked) {
    auto source = std::make_shared<MadeUpSource>(64);
    source->pushed = EventFd::create().value();
    source->is_askable = false;
    PagerOptions options = with(source);
    options.patience = 50ms;
    const auto bytes = begin(std::move(options));
    EXPECT_EQ(look(bytes, 17), std::nullopt);
    EXPECT_EQ(pager->health().error().code(), Errc::timed_out);
    EXPECT_TRUE(source->fetched().empty());
    wait_until_told();
}

/// Each call that the thread makes fails in its turn: a page is right or a fault with a reason, and comes in time.
void touch_all_with_faults(PagerOptions (*options_of)(), FaultInjector::Options fault) {
    constexpr std::uint64_t count = 64;
    bool is_any_failed = false;
    for (std::uint64_t nth = 0; nth < 500; ++nth) {
        auto pager = Pager::start(options_of()).value();
        auto memory = pager->memory(0).value();
        std::uint64_t count_lost = 0;
        const FaultInjector injector{nth, fault};
        for (std::uint64_t number = 0; number < count; number += 3) {
            // So that the thread comes to rest in between, and waits by the calls that can fail.
            std::this_thread::sleep_for(200us);
            const auto seen = look(memory->bytes(), number);
            if (!seen)
                ++count_lost;
            else
                EXPECT_EQ(*seen, word_of(number)) << number;
        }
        const bool has_fired = injector.has_fired();
        if (count_lost != 0) {
            EXPECT_FALSE(pager->health()) << "round " << nth;
            is_any_failed = true;
        }
        if (!has_fired) {
            EXPECT_TRUE(pager->health());
            EXPECT_GT(nth, 0U);
        }
        // The thread asks the injector: it goes first.
        memory.reset();
        pager.reset();
        if (!has_fired) break;
    }
    if (fault.only == SysCall::ioctl && fault.os_error == 0) {
        EXPECT_TRUE(is_any_failed);
    }
}

class PagerFaults : public PagerTest, public ::testing::WithParamInterface<std::uint64_t> {
protected:
    static PagerOptions plain() {
        PagerOptions options = with(std::make_shared<MadeUpSource>(64));
        options.patience = 200ms;
        return options;
    }
    static PagerOptions without_poison() {
        PagerOptions options = plain();
        options.may_poison = false;
        return options;
    }
    static PagerOptions broken() {
        PagerOptions options = with(std::make_shared<MadeUpSource>(
            64, [](ImagePart, PageSink&) -> Result<void> { return Error{Errc::io, "no"}; }));
        options.may_poison = false;
        return options;
    }
};
INSTANTIATE_TEST_SUITE_P(InARow, PagerFaults, ::testing::Values(1, 2, 5, 40));

TEST_P(PagerFaults, OfRequestsEndEveryWait) {
    touch_all_with_faults(plain, {.only = SysCall::ioctl, .repeat = GetParam()});
    touch_all_with_faults(without_poison, {.only = SysCall::ioctl, .repeat = GetParam()});
}

TEST_P(PagerFaults, ThatPassEndEveryWait) {
    touch_all_with_faults(plain, {.only = SysCall::ioctl, .os_error = EAGAIN, .repeat = GetParam()});
}

TEST_P(PagerFaults, OfReadingAndWaitingEndEveryWait) {
    touch_all_with_faults(plain, {.only = SysCall::read, .repeat = GetParam()});
    touch_all_with_faults(plain, {.only = SysCall::poll, .repeat = GetParam()});
}

TEST_P(PagerFaults, OfMakingPagesUnreachableEndEveryWait) {
    for (std::uint64_t nth = 0; nth < 4; ++nth) {
        auto failing = Pager::start(broken()).value();
        auto shown = failing->memory(0).value();
        const FaultInjector injector{nth, {.only = SysCall::mprotect, .repeat = GetParam()}};
        for (std::uint64_t number = 0; number < 8; ++number)
            EXPECT_EQ(look(shown->bytes(), number), std::nullopt);
        EXPECT_FALSE(failing->health());
        shown.reset();
        failing.reset();
    }
}

}  // namespace
}  // namespace guestmem
