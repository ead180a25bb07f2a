// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/stream_source.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "guestmem/base/check.hpp"
#include "guestmem/mem/paging/pager.hpp"
#include "guestmem/mem/paging/stream_writer.hpp"
#include "guestmem/mem/paging/testing/memory_pages.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/guarded.hpp"
#include "guestmem/sys/memory_advice.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using testing::for_each_fault;
using ::testing::HasSubstr;
using testing::MemorySink;
using testing::MemorySource;
using testing::PageBytes;
using testing::random_image;
using testing::TempFolder;

struct Pipe {
    Fd reader;
    Fd writer;
};

Pipe make_pipe() {
    std::array<int, 2> ends{-1, -1};
    EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    return {Fd{ends[0]}, Fd{ends[1]}};
}

void write_all(FdView fd, std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
        const ssize_t count = ::write(fd.number(), bytes.data(), bytes.size());
        ASSERT_GT(count, 0);
        bytes = bytes.subspan(static_cast<std::size_t>(count));
    }
}

/// A stream that is put together by hand, in a pipe with room for it.
class HandStream {
public:
    explicit HandStream(std::uint64_t image_bytes = 8 * page_size_bytes) {
        ::fcntl(pipe_.writer.view().number(), F_SETPIPE_SZ, 1 << 20);
        append_frame(bytes, HelloFrame{.has_zstd = true, .image_bytes = image_bytes});
    }
    HandStream& pages(std::uint64_t page, std::uint64_t count, int value) {
        encoder.append_pages(bytes, page * page_size_bytes,
                             PageBytes(count * page_size_bytes, static_cast<std::byte>(value)), 0);
        return *this;
    }
    HandStream& zeros(std::uint64_t page, std::uint64_t count) {
        encoder.append_zeros(bytes, {page * page_size_bytes, count * page_size_bytes});
        return *this;
    }
    HandStream& end() {
        append_frame(bytes, encoder.end_frame());
        return *this;
    }
    /// Sends what was put together, the writing end stays open.
    void send() {
        write_all(pipe_.writer, bytes);
        bytes.clear();
    }
    void hang_up() { pipe_.writer.reset(); }
    [[nodiscard]] FdView writer() const { return pipe_.writer; }
    Result<std::unique_ptr<StreamSource>> open(ReceiveOptions options = {.patience = 100ms}) {
        send();
        return StreamSource::open(std::move(pipe_.reader), std::move(options));
    }

    FrameBytes bytes;
    PageEncoder encoder;

private:
    Pipe pipe_ = make_pipe();
};

class Judge : public PageJudge {
public:
    [[nodiscard]] Result<void> check_pages(std::uint64_t offset_bytes,
                                           std::span<const std::byte> pages) override {
        return check({offset_bytes, pages.size()});
    }
    [[nodiscard]] Result<void> check_zeros(ImagePart part) override { return check(part); }

    std::vector<ImagePart> asked;
    std::optional<std::uint64_t> bad_at;

private:
    Result<void> check(ImagePart part) {
        asked.push_back(part);
        if (bad_at == part.offset_bytes) return Error{Errc::corrupt, "not what the template has"};
        return {};
    }
};

TEST(StreamSource, GivesAWholeImageAsItComes) {
    auto stream = HandStream{}.pages(2, 2, 5).zeros(0, 2).pages(7, 1, 6).zeros(4, 3).end().open().value();
    MemorySink sink{8 * page_size_bytes};

    while (stream->take_arrivals(sink).value()) {
    }

    EXPECT_TRUE(sink.has_each_once());
    EXPECT_EQ(sink.image[2 * page_size_bytes], std::byte{5});
    EXPECT_EQ(sink.image[7 * page_size_bytes], std::byte{6});
    EXPECT_EQ(sink.image[0], std::byte{0});
    EXPECT_TRUE(stream->is_complete());
    EXPECT_FALSE(stream->arrivals().is_open());
}

TEST(StreamSource, TakesWhatHasComeWithoutWaiting) {
    HandStream hand;
    auto stream = hand.pages(0, 1, 1).open({.patience = 1h}).value();
    MemorySink sink{8 * page_size_bytes};

    EXPECT_TRUE(*stream->take_arrivals(sink));
    EXPECT_EQ(sink.count_given(), 1U);
    EXPECT_TRUE(*stream->take_arrivals(sink)) << "nothing has come, and it does not wait";
    EXPECT_EQ(sink.count_given(), 1U);
    EXPECT_TRUE(stream->arrivals().is_open());

    hand.zeros(1, 7).end().send();
    EXPECT_FALSE(*stream->take_arrivals(sink));
    EXPECT_TRUE(sink.has_each_once());
}

TEST(StreamSource, ReadsOnUntilTheWantedPagesHavePassed) {
    HandStream hand;
    auto stream = hand.pages(0, 2, 1).zeros(2, 2).pages(4, 1, 4).open({.patience = 10s}).value();
    MemorySink sink{8 * page_size_bytes};

    std::thread later{[&] {
        std::this_thread::sleep_for(50ms);
        hand.pages(6, 2, 6).zeros(5, 1).end().send();
    }};
    ASSERT_TRUE(stream->fetch({6 * page_size_bytes, page_size_bytes}, sink));
    later.join();

    EXPECT_EQ(sink.image[6 * page_size_bytes], std::byte{6});
    EXPECT_GE(sink.count_given(), 7U) << "what passed was given, too";
}

TEST(StreamSource, DoesNotGoBack) {
    HandStream hand;
    auto stream = hand.pages(0, 2, 1).open().value();
    MemorySink sink{8 * page_size_bytes};
    ASSERT_TRUE(stream->fetch({0, page_size_bytes}, sink));

    const auto again = stream->fetch({page_size_bytes, 2 * page_size_bytes}, sink);

    ASSERT_FALSE(again);
    EXPECT_EQ(again.error().code(), Errc::invalid_argument);
    EXPECT_THAT(again.error().message(), HasSubstr("a stream does not go back"));
    hand.zeros(2, 6).end().send();
    EXPECT_TRUE(stream->fetch({2 * page_size_bytes, page_size_bytes}, sink)) << "and it goes on";
}

TEST(StreamSource, AStallIsAnErrorWithinThePatienceAndStaysOne) {
    HandStream hand;
    auto stream = hand.pages(0, 1, 1).open().value();
    MemorySink sink{8 * page_size_bytes};
    const auto begin = Clock::now();

    const auto stalled = stream->fetch({page_size_bytes, page_size_bytes}, sink);

    ASSERT_FALSE(stalled);
    EXPECT_LT(Clock::now() - begin, 5s);
    EXPECT_EQ(stalled.error().code(), Errc::timed_out);
    hand.zeros(1, 7).end().send();
    EXPECT_EQ(stream->fetch({page_size_bytes, page_size_bytes}, sink).error().message(),
              stalled.error().message());
    EXPECT_EQ(stream->take_arrivals(sink).error().message(), stalled.error().message());
}

TEST(StreamSource, AByteNowAndThenDoesNotMakeItWaitLonger) {
    HandStream hand;
    auto stream = hand.open({.patience = 200ms}).value();
    hand.pages(0, 1, 1);
    std::atomic<bool> is_over{false};
    std::thread trickle{[&] {
        for (std::size_t at = 0; at < hand.bytes.size() && !is_over; ++at) {
            write_all(hand.writer(), std::span{hand.bytes}.subspan(at, 1));
            std::this_thread::sleep_for(10ms);
        }
    }};
    MemorySink sink{8 * page_size_bytes};
    const auto begin = Clock::now();
    const auto late = stream->fetch({0, page_size_bytes}, sink);
    const auto waited = Clock::now() - begin;
    is_over = true;
    trickle.join();
    ASSERT_FALSE(late);
    EXPECT_EQ(late.error().code(), Errc::timed_out);
    EXPECT_LT(waited, 5s);
}

TEST(StreamSource, AStreamThatEndsEarlyIsCorrupt) {
    for (const bool is_in_a_frame : {false, true}) {
        HandStream hand;
        hand.pages(0, 8, 1);
        if (is_in_a_frame) hand.bytes.resize(hand.bytes.size() - 100);
        auto stream = hand.open().value();
        hand.hang_up();
        MemorySink sink{8 * page_size_bytes};
        auto more = stream->take_arrivals(sink);
        while (more && *more) more = stream->take_arrivals(sink);
        ASSERT_FALSE(more);
        EXPECT_EQ(more.error().code(), Errc::corrupt);
        EXPECT_THAT(more.error().message(), HasSubstr("ends in the middle"));
    }
}

TEST(StreamSource, AnEndWithPagesMissingIsCorrupt) {
    auto stream = HandStream{}.pages(0, 2, 1).zeros(3, 5).end().open().value();
    MemorySink sink{8 * page_size_bytes};
    const auto more = stream->take_arrivals(sink);
    ASSERT_FALSE(more);
    EXPECT_EQ(more.error().code(), Errc::corrupt);
    EXPECT_THAT(more.error().message(), HasSubstr("4096 bytes have not come, the first at 8192"));
}

TEST(StreamSource, APageThatComesTwiceIsCorruptAndNotGiven) {
    for (const bool as_zeros : {false, true}) {
        HandStream hand;
        hand.pages(0, 4, 1);
        as_zeros ? hand.zeros(3, 2) : hand.pages(3, 2, 2);
        auto stream = hand.end().open().value();
        MemorySink sink{8 * page_size_bytes};
        const auto more = stream->take_arrivals(sink);
        ASSERT_FALSE(more);
        EXPECT_EQ(more.error().code(), Errc::corrupt);
        EXPECT_THAT(more.error().message(), HasSubstr("pages come twice"));
        EXPECT_EQ(sink.counts[3], 1);
        EXPECT_EQ(sink.counts[4], 0);
    }
}

TEST(StreamSource, WhatTheSinkRefusesIsGivenAgain) {
    auto stream = HandStream{}.pages(0, 3, 1).zeros(3, 5).end().open().value();
    MemorySink sink{8 * page_size_bytes};
    sink.fails = true;
    EXPECT_THAT(stream->take_arrivals(sink).error().message(), HasSubstr("the sink is full"));
    EXPECT_THAT(stream->fetch({0, page_size_bytes}, sink).error().message(), HasSubstr("the sink is full"));
    sink.fails = false;
    ASSERT_TRUE(stream->fetch({0, page_size_bytes}, sink));
    while (*stream->take_arrivals(sink)) {
    }
    EXPECT_TRUE(sink.has_each_once());
}

TEST(StreamSource, AJudgeIsAskedAboutAllAndEndsIt) {
    Judge judge;
    judge.bad_at = 3 * page_size_bytes;
    auto stream =
        HandStream{}.pages(0, 3, 1).zeros(3, 5).end().open({.patience = 100ms, .judge = &judge}).value();
    MemorySink sink{8 * page_size_bytes};

    const auto more = stream->take_arrivals(sink);

    ASSERT_FALSE(more);
    EXPECT_THAT(more.error().message(), HasSubstr("not what the template has"));
    EXPECT_EQ(judge.asked,
              (std::vector<ImagePart>{{0, 3 * page_size_bytes}, {3 * page_size_bytes, 5 * page_size_bytes}}));
    EXPECT_EQ(sink.count_given(), 3U);
    EXPECT_FALSE(stream->take_arrivals(sink));
}

TEST(StreamSource, TheWordOfAFailedWriterArrives) {
    HandStream hand;
    hand.pages(0, 3, 1);
    append_frame(hand.bytes, ErrorFrame{.code = Errc::io, .text = "the disk is gone"});
    auto stream = hand.open().value();
    MemorySink sink{8 * page_size_bytes};
    const auto more = stream->take_arrivals(sink);
    ASSERT_FALSE(more);
    EXPECT_EQ(more.error().code(), Errc::io);
    EXPECT_THAT(more.error().message(), HasSubstr("the disk is gone"));
}

TEST(StreamSource, AnAnswerOfAServerIsNoStream) {
    HandStream hand;
    append_frame(hand.bytes, DoneFrame{1});
    auto stream = hand.open().value();
    MemorySink sink{8 * page_size_bytes};
    EXPECT_EQ(stream->take_arrivals(sink).error().code(), Errc::corrupt);
}

TEST(StreamSource, AnotherImageThanExpectedIsRefusedAtOnce) {
    ImageId id{};
    id[0] = std::byte{1};
    const auto other = HandStream{}.open({.patience = 100ms, .expected_id = id});
    ASSERT_FALSE(other);
    EXPECT_THAT(other.error().message(), HasSubstr("those of 01000000000000000000000000000000 are wanted"));

    EXPECT_TRUE(HandStream{}.open({.patience = 100ms, .max_image_bytes = 8 * page_size_bytes}));
    const auto large = HandStream{}.open({.patience = 100ms, .max_image_bytes = 7 * page_size_bytes});
    ASSERT_FALSE(large);
    EXPECT_EQ(large.error().code(), Errc::out_of_range);
}

TEST(StreamSource, AnEmptyOrSilentStreamIsAnError) {
    Pipe pipe = make_pipe();
    const auto silent = StreamSource::open(std::move(pipe.reader), {.patience = 50ms});
    ASSERT_FALSE(silent);
    EXPECT_EQ(silent.error().code(), Errc::timed_out);
    pipe = make_pipe();
    pipe.writer.reset();
    const auto empty = StreamSource::open(std::move(pipe.reader), {.patience = 50ms});
    ASSERT_FALSE(empty);
    EXPECT_EQ(empty.error().code(), Errc::corrupt);
}

TEST(StreamSource, WantsWholePagesOfTheImage) {
    HandStream hand;
    auto stream = hand.zeros(0, 8).end().open().value();
    MemorySink sink{8 * page_size_bytes};
    for (const ImagePart part : {ImagePart{1, 4096}, ImagePart{0, 4095}, ImagePart{8 * page_size_bytes, 4096},
                                 ImagePart{0, 9 * page_size_bytes}, ImagePart{0 - std::uint64_t{4096}, 8192}})
        EXPECT_EQ(stream->fetch(part, sink).error().code(), Errc::invalid_argument);
    EXPECT_TRUE(stream->fetch({0, 0}, sink));
    EXPECT_TRUE(stream->fetch({0, 8 * page_size_bytes}, sink));
}

TEST(StreamSource, ThePagesOfTheLargestImageMayBeZerosInOneFrame) {
    auto stream =
        HandStream{max_paged_image_bytes}.zeros(0, max_paged_image_bytes / page_size_bytes).end().open();
    ASSERT_TRUE(stream);
    class Counter : public PageSink {
    public:
        [[nodiscard]] Result<void> take_pages(std::uint64_t, std::span<const std::byte>) override {
            return {};
        }
        [[nodiscard]] Result<void> take_zeros(ImagePart part) override {
            size_bytes += part.size_bytes;
            return {};
        }
        std::uint64_t size_bytes = 0;
    } sink;
    EXPECT_FALSE(*(*stream)->take_arrivals(sink));
    EXPECT_EQ(sink.size_bytes, max_paged_image_bytes);
}

/// Lazy memory of eight pages that comes by a stream.
struct FromStream {
    explicit FromStream(HandStream& stream, std::chrono::milliseconds patience = 300ms) {
        std::shared_ptr<PageSource> source = stream.open({.patience = patience}).value();
        pager =
            Pager::start(
                {.source = std::move(source), .regions = {{0, 8 * page_size_bytes}}, .patience = patience})
                .value();
        memory = pager->memory(0).value();
    }
    [[nodiscard]] std::optional<std::byte> first_of_page(std::uint64_t page) const {
        std::byte value{};
        const bool is_there =
            copy_from_guest(&value, memory->bytes().data() + page * page_size_bytes, 1) == 1;
        return is_there ? std::optional{value} : std::nullopt;
    }

    std::shared_ptr<Pager> pager;
    std::shared_ptr<const HostMemory> memory;
};

TEST(StreamSource, FeedsAPagerInItsOwnOrder) {
    ASSERT_TRUE(install_fault_guard());
    HandStream stream;
    stream.zeros(0, 2).pages(2, 2, 7);
    const FromStream lazy{stream};
    EXPECT_EQ(lazy.first_of_page(3), std::byte{7});
    EXPECT_EQ(lazy.first_of_page(0), std::byte{0});
    std::thread later{[&] {
        std::this_thread::sleep_for(50ms);
        stream.pages(4, 4, 9).end().send();
    }};
    EXPECT_EQ(lazy.first_of_page(7), std::byte{9}) << "a touch waits for what comes later";
    later.join();
    EXPECT_TRUE(lazy.pager->wait_until_filled(5s));
}

TEST(StreamSource, WhatCameWithTheGreetingFillsAPagerWhileTheWriterIsSilent) {
    ASSERT_TRUE(install_fault_guard());
    HandStream stream;
    stream.zeros(0, 2).pages(2, 6, 7).end();
    const FromStream lazy{stream};
    EXPECT_TRUE(lazy.pager->wait_until_filled(5s));
    EXPECT_EQ(lazy.first_of_page(7), std::byte{7});
    EXPECT_EQ(lazy.pager->counters().faults, 0U);
}

TEST(StreamSource, APageThatHasNotComeHoldsUpNobodyElse) {
    ASSERT_TRUE(install_fault_guard());
    HandStream stream;
    stream.zeros(0, 2);
    const FromStream lazy{stream, 3s};
    std::thread waiter{[&] {
        GM_CHECK(prepare_thread_for_guest_memory().has_value());
        EXPECT_EQ(lazy.first_of_page(6), std::byte{9});
    }};
    std::this_thread::sleep_for(50ms);
    const auto begin = Clock::now();
    EXPECT_EQ(lazy.first_of_page(1), std::byte{0}) << "zeros that came long ago";
    EXPECT_TRUE(discard_pages(lazy.memory->bytes().subspan(4 * page_size_bytes, page_size_bytes)));
    EXPECT_LT(Clock::now() - begin, 1s);
    stream.pages(2, 6, 9).end().send();
    waiter.join();
    EXPECT_EQ(lazy.first_of_page(4), std::byte{0});
    EXPECT_TRUE(lazy.pager->health());
}

TEST(StreamSource, CannotBeAskedUntilItIsComplete) {
    HandStream hand;
    auto stream = hand.zeros(0, 8).end().open().value();
    MemorySink sink{8 * page_size_bytes};
    EXPECT_FALSE(stream->can_be_asked());
    EXPECT_FALSE(*stream->take_arrivals(sink));
    EXPECT_TRUE(stream->can_be_asked());
}

TEST(StreamSource, ThatStallsOrEndsIsAnErrorOfThePagersMemory) {
    ASSERT_TRUE(install_fault_guard());
    for (const bool is_closed : {false, true}) {
        HandStream stream;
        stream.pages(0, 2, 7);
        const FromStream lazy{stream};
        EXPECT_EQ(lazy.first_of_page(1), std::byte{7});
        if (is_closed) stream.hang_up();
        const auto begin = std::chrono::steady_clock::now();
        EXPECT_EQ(lazy.first_of_page(5), std::nullopt) << is_closed;
        EXPECT_LT(std::chrono::steady_clock::now() - begin, 5s);
        EXPECT_FALSE(lazy.pager->health());
        EXPECT_EQ(lazy.first_of_page(0), std::byte{7}) << "what came stays";
    }
}

TEST(StreamSource, WhateverFailsIsAnErrorAndLeavesNothing) {
    const TempFolder folder;
    HandStream hand;
    hand.pages(0, 3, 1).zeros(3, 5).end();
    const std::string path =
        folder.write("stream", {reinterpret_cast<const char*>(hand.bytes.data()), hand.bytes.size()});
    const auto count = for_each_fault([&]() -> Result<void> {
        Fd file = GM_TRY(open_file(path, OpenMode::read));
        const auto stream = GM_TRY(StreamSource::open(std::move(file), {.patience = 1s}));
        MemorySink sink{8 * page_size_bytes};
        while (GM_TRY(stream->take_arrivals(sink))) {
        }
        EXPECT_TRUE(sink.has_each_once());
        return {};
    });
    EXPECT_GE(count, 3U);
}

}  // namespace
}  // namespace guestmem
