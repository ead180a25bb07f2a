// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/remote_source.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "guestmem/mem/paging/page_server.hpp"
#include "guestmem/mem/paging/pager.hpp"
#include "guestmem/mem/paging/testing/memory_pages.hpp"
#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/guarded.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using testing::eventually;
using testing::for_each_fault;
using ::testing::HasSubstr;
using testing::LoopThread;
using testing::MemorySink;
using testing::MemorySource;
using testing::PageBytes;
using testing::random_image;
using testing::TempFolder;

constexpr std::uint64_t image_bytes = 64 * page_size_bytes;
constexpr auto enough_time = 5s;

/// The server's end of a connection, by hand. Blocks.
class HandServer {
public:
    explicit HandServer(UnixStream stream) : stream_(std::move(stream)) {}

    std::optional<PageFrame> next() {
        for (;;) {
            auto frame = parser_.next();
            if (!frame || *frame) return frame ? std::move(*frame) : std::nullopt;
            const auto received = stream_.receive(parser_.room());
            if (!received || !*received || (*received)->count_bytes == 0) return std::nullopt;
            parser_.take((*received)->count_bytes);
        }
    }
    void send(std::span<const std::byte> rest) {
        while (!rest.empty()) {
            const auto sent = stream_.send(rest);
            if (!sent) return;
            rest = rest.subspan(sent->count_bytes);
        }
    }
    template <typename Frame>
    void say(const Frame& frame) {
        FrameBytes bytes;
        append_frame(bytes, frame);
        send(bytes);
    }
    void pages(std::uint64_t page, std::uint64_t count, int value) {
        FrameBytes bytes;
        encoder_.append_pages(bytes, page * page_size_bytes,
                              PageBytes(count * page_size_bytes, static_cast<std::byte>(value)), 0);
        send(bytes);
    }
    void zeros(std::uint64_t page, std::uint64_t count) {
        FrameBytes bytes;
        encoder_.append_zeros(bytes, {page * page_size_bytes, count * page_size_bytes});
        send(bytes);
    }
    void hang_up() { stream_ = UnixStream{}; }

private:
    UnixStream stream_;
    FrameParser parser_{FrameFlow::from_client};
    PageEncoder encoder_;
};

/// A server that greets well, and then does what the test says with its first request; then it waits for the client to
/// go.
class Liar {
public:
    using Answer = std::function<void(HandServer&, const RequestFrame&)>;

    explicit Liar(Answer answer, HelloFrame hello = {.has_zstd = true, .image_bytes = image_bytes}) {
        auto [client, server] = UnixStream::pair().value();
        client_ = std::move(client);
        thread_ = std::thread{[answer = std::move(answer), hello, end = std::move(server)]() mutable {
            HandServer hand{std::move(end)};
            if (!hand.next()) return;
            hand.say(hello);
            const auto asked = hand.next();
            if (!asked) return;
            answer(hand, std::get<RequestFrame>(*asked));
            while (hand.next()) {
            }
        }};
    }
    Liar(const Liar&) = delete;
    Liar& operator=(const Liar&) = delete;
    ~Liar() { thread_.join(); }

    Result<std::unique_ptr<RemoteSource>> source(RemoteOptions options = {}) {
        if (options.receive.patience == ReceiveOptions{}.patience) options.receive.patience = 300ms;
        return RemoteSource::adopt(std::move(client_).release(), std::move(options));
    }

private:
    UnixStream client_;
    std::thread thread_;
};

/// Fetches from a liar; its error, which came in time and stays.
Error error_of(const Liar::Answer& answer, ImagePart wanted = {page_size_bytes, 4 * page_size_bytes}) {
    Liar liar{answer};
    const auto source = liar.source().value();
    MemorySink sink{image_bytes};
    const auto begin = Clock::now();
    const auto first = source->fetch(wanted, sink);
    EXPECT_LT(Clock::now() - begin, enough_time);
    const auto second = source->fetch({0, page_size_bytes}, sink);
    if (first || second) return Error{Errc::io, "no error"};
    EXPECT_EQ(second.error().message(), first.error().message());
    EXPECT_EQ(second.error().code(), first.error().code());
    for (std::uint64_t page = 0; page < sink.counts.size(); ++page)
        EXPECT_LE(sink.counts[page], page >= 1 && page < 5 ? 1 : 0) << "page " << page;
    return first.error();
}

TEST(RemoteSource, GivesWhatWasAskedFor) {
    Liar honest{[](HandServer& server, const RequestFrame& request) {
        EXPECT_EQ(request.part, (ImagePart{page_size_bytes, 4 * page_size_bytes}));
        server.pages(1, 1, 7);
        server.zeros(2, 1);
        server.pages(3, 2, 8);
        server.say(DoneFrame{request.number});
    }};
    const auto source = honest.source().value();
    MemorySink sink{image_bytes};
    EXPECT_EQ(source->size_bytes(), image_bytes);

    ASSERT_TRUE(source->fetch({page_size_bytes, 4 * page_size_bytes}, sink));

    EXPECT_EQ(sink.count_given(), 4U);
    EXPECT_EQ(sink.image[page_size_bytes], std::byte{7});
    EXPECT_EQ(sink.image[2 * page_size_bytes], std::byte{0});
    EXPECT_EQ(sink.image[4 * page_size_bytes], std::byte{8});
}

TEST(RemoteSource, AServerThatStallsIsAnErrorInTime) {
    const Error silent = error_of([](HandServer&, const RequestFrame&) {});
    EXPECT_EQ(silent.code(), Errc::timed_out);
    EXPECT_THAT(silent.message(), HasSubstr("within 300 ms"));
    EXPECT_EQ(error_of([](HandServer& server, const RequestFrame&) { server.pages(1, 2, 7); }).code(),
              Errc::timed_out);
    EXPECT_EQ(error_of([](HandServer& server, const RequestFrame&) { server.pages(1, 4, 7); }).code(),
              Errc::timed_out)
        << "an answer without done is none";
}

TEST(RemoteSource, AServerThatTricklesIsAnErrorInTime) {
    const Error late = error_of([](HandServer& server, const RequestFrame&) {
        FrameBytes bytes;
        PageEncoder{}.append_pages(bytes, page_size_bytes, PageBytes(4 * page_size_bytes, std::byte{1}), 0);
        for (std::size_t at = 0; at < 60; ++at) {
            server.send(std::span{bytes}.subspan(at, 1));
            std::this_thread::sleep_for(20ms);
        }
    });
    EXPECT_EQ(late.code(), Errc::timed_out);
}

TEST(RemoteSource, AServerThatGoesIsAnErrorAtOnce) {
    for (const int count : {0, 2, 4}) {
        const Error gone = error_of([count](HandServer& server, const RequestFrame&) {
            if (count > 0) server.pages(1, static_cast<std::uint64_t>(count), 7);
            server.hang_up();
        });
        EXPECT_EQ(gone.code(), Errc::unavailable);
        EXPECT_THAT(gone.message(), HasSubstr("closed the connection"));
    }
}

TEST(RemoteSource, WhatWasNotAskedForIsCorrupt) {
    const std::array<Liar::Answer, 8> answers{
        [](HandServer& server, const RequestFrame&) { server.pages(0, 1, 7); },
        [](HandServer& server, const RequestFrame&) { server.pages(2, 1, 7); },
        [](HandServer& server, const RequestFrame&) { server.pages(1, 5, 7); },
        [](HandServer& server, const RequestFrame&) { server.zeros(1, 5); },
        [](HandServer& server, const RequestFrame&) { server.zeros(0, 64); },
        [](HandServer& server, const RequestFrame&) {
            server.pages(1, 2, 7);
            server.pages(2, 1, 7);
        },
        [](HandServer& server, const RequestFrame& request) {
            server.pages(1, 3, 7);
            server.say(DoneFrame{request.number});
        },
        [](HandServer& server, const RequestFrame& request) {
            server.pages(1, 4, 7);
            server.say(DoneFrame{request.number + 1});
        },
    };
    for (std::size_t i = 0; i < answers.size(); ++i)
        EXPECT_EQ(error_of(answers.at(i)).code(), Errc::corrupt) << i;
}

TEST(RemoteSource, MoreThanWasAskedForIsCorrupt) {
    Liar liar{[](HandServer& server, const RequestFrame& request) {
        FrameBytes bytes;
        PageEncoder encoder;
        encoder.append_zeros(bytes, request.part);
        append_frame(bytes, DoneFrame{request.number});
        encoder.append_zeros(bytes, {0, page_size_bytes});
        server.send(bytes);
    }};
    const auto source = liar.source().value();
    MemorySink sink{image_bytes};
    const auto fetched = source->fetch({page_size_bytes, page_size_bytes}, sink);
    ASSERT_FALSE(fetched);
    EXPECT_EQ(fetched.error().code(), Errc::corrupt);
}

TEST(RemoteSource, AWrongSumIsCorruptAndNotGiven) {
    const Error wrong = error_of([](HandServer& server, const RequestFrame&) {
        FrameBytes bytes;
        PageEncoder{}.append_pages(bytes, page_size_bytes, PageBytes(4 * page_size_bytes, std::byte{1}), 0);
        bytes.back() ^= std::byte{1};
        server.send(bytes);
    });
    EXPECT_EQ(wrong.code(), Errc::corrupt);
    EXPECT_THAT(wrong.message(), HasSubstr("have the sum"));
}

TEST(RemoteSource, GarbageIsCorrupt) {
    const Error garbage = error_of(
        [](HandServer& server, const RequestFrame&) { server.send(PageBytes(100'000, std::byte{0x5a})); });
    EXPECT_EQ(garbage.code(), Errc::corrupt);
    EXPECT_EQ(error_of([](HandServer& server, const RequestFrame&) { server.say(EndFrame{}); }).code(),
              Errc::corrupt);
}

TEST(RemoteSource, TheWordOfAServerArrives) {
    const Error said = error_of([](HandServer& server, const RequestFrame&) {
        server.pages(1, 1, 7);
        server.say(ErrorFrame{.code = Errc::io, .text = "the disk is gone"});
    });
    EXPECT_EQ(said.code(), Errc::io);
    EXPECT_EQ(said.message(), "page server: the disk is gone");
}

class SumJudge : public PageJudge {
public:
    explicit SumJudge(PageBytes truth) : truth_(std::move(truth)) {}
    [[nodiscard]] Result<void> check_pages(std::uint64_t offset_bytes,
                                           std::span<const std::byte> pages) override {
        if (std::ranges::equal(pages, std::span{truth_}.subspan(offset_bytes, pages.size()))) return {};
        return Error{Errc::corrupt, "not the page that the template has"};
    }
    [[nodiscard]] Result<void> check_zeros(ImagePart part) override {
        const auto bytes = std::span{truth_}.subspan(part.offset_bytes, part.size_bytes);
        if (std::ranges::all_of(bytes, [](std::byte byte) { return byte == std::byte{}; })) return {};
        return Error{Errc::corrupt, "not the zeros that the template has"};
    }

private:
    PageBytes truth_;
};

TEST(RemoteSource, AJudgeCatchesALiarWhoseSumsFit) {
    SumJudge judge{PageBytes(image_bytes, std::byte{7})};
    for (const bool as_zeros : {false, true}) {
        Liar liar{[as_zeros](HandServer& server, const RequestFrame&) {
            server.pages(1, 2, 7);
            as_zeros ? server.zeros(3, 2) : server.pages(3, 2, 8);
        }};
        const auto source = liar.source({.receive = {.judge = &judge}}).value();
        MemorySink sink{image_bytes};

        const auto fetched = source->fetch({page_size_bytes, 4 * page_size_bytes}, sink);

        ASSERT_FALSE(fetched);
        EXPECT_THAT(fetched.error().message(), HasSubstr(as_zeros ? "not the zeros" : "not the page"));
        EXPECT_EQ(sink.count_given(), 2U) << "what the judge refuses is not given";
        EXPECT_FALSE(source->fetch({0, page_size_bytes}, sink));
    }
}

TEST(RemoteSource, AnErrorOfTheSinkLeavesTheConnection) {
    MemorySource image{random_image(64, 1)};
    const TempFolder folder;
    LoopThread loop;
    auto server =
        loop.call([&](EventLoop& l) { return PageServer::create(l, image, {.path = folder.path_of("s")}); });
    const auto source =
        RemoteSource::connect(folder.path_of("s"), {.receive = {.patience = enough_time}}).value();
    MemorySink sink{image_bytes};
    sink.fails = true;
    EXPECT_THAT(source->fetch({0, image_bytes}, sink).error().message(), HasSubstr("the sink is full"));
    sink.fails = false;
    ASSERT_TRUE(source->fetch({0, image_bytes}, sink));
    EXPECT_EQ(sink.image, image.image);
    loop.call([&](EventLoop&) { server = Error{Errc::io, "gone"}; });
}

class SlowSink : public MemorySink {
public:
    using MemorySink::MemorySink;
    [[nodiscard]] Result<void> take_pages(std::uint64_t offset_bytes,
                                          std::span<const std::byte> pages) override {
        std::this_thread::sleep_for(700ms);
        return MemorySink::take_pages(offset_bytes, pages);
    }
};

TEST(RemoteSource, TheTimeOfASlowSinkIsNotTheServersAndAStallBehindItIs) {
    Liar server_of_one{[](HandServer& server, const RequestFrame& request) {
        server.pages(1, 2, 7);
        server.pages(3, 2, 8);
        server.say(DoneFrame{request.number});
    }};
    const auto source = server_of_one.source({.receive = {.patience = 1s}}).value();
    SlowSink sink{image_bytes};
    const auto fetched = source->fetch({page_size_bytes, 4 * page_size_bytes}, sink);
    EXPECT_TRUE(fetched) << fetched.error().message();
    EXPECT_EQ(sink.count_given(), 4U);

    const auto begin = Clock::now();
    const auto stalled = source->fetch({0, page_size_bytes}, sink);
    EXPECT_LT(Clock::now() - begin, enough_time);
    ASSERT_FALSE(stalled) << "it answers one request";
    EXPECT_EQ(stalled.error().code(), Errc::timed_out);
}

TEST(RemoteSource, WantsWholePagesOfTheImage) {
    Liar liar{[](HandServer& server, const RequestFrame& request) {
        server.zeros(0, 64);
        server.say(DoneFrame{request.number});
    }};
    const auto source = liar.source().value();
    MemorySink sink{image_bytes};
    for (const ImagePart part : {ImagePart{1, 4096}, ImagePart{0, 4095}, ImagePart{image_bytes, 4096},
                                 ImagePart{0, image_bytes + 4096}, ImagePart{0 - std::uint64_t{4096}, 8192}})
        EXPECT_EQ(source->fetch(part, sink).error().code(), Errc::invalid_argument);
    EXPECT_TRUE(source->fetch({0, 0}, sink));
    EXPECT_TRUE(source->fetch({0, image_bytes}, sink)) << "and nothing of that was sent";
}

/// What adopt() says to a server that says that, and then waits.
Error greeting_error(const FrameBytes& said, RemoteOptions options = {}) {
    auto [client, server] = UnixStream::pair().value();
    if (!said.empty()) {
        EXPECT_TRUE(server.send(said));
    }
    options.receive.patience = 100ms;
    const auto begin = Clock::now();
    const auto source = RemoteSource::adopt(std::move(client).release(), std::move(options));
    EXPECT_LT(Clock::now() - begin, enough_time);
    return source ? Error{Errc::io, "no error"} : source.error();
}

template <typename Frame>
FrameBytes bytes_of(const Frame& frame) {
    FrameBytes bytes;
    append_frame(bytes, frame);
    return bytes;
}

TEST(RemoteSource, AGreetingIsChecked) {
    const HelloFrame good{.image_bytes = image_bytes};
    EXPECT_EQ(greeting_error(bytes_of(good)).message(), "no error");
    EXPECT_EQ(greeting_error({}).code(), Errc::timed_out);
    EXPECT_EQ(greeting_error(bytes_of(ErrorFrame{.code = Errc::busy, .text = "later"})).code(), Errc::busy);
    EXPECT_EQ(greeting_error(bytes_of(DoneFrame{1})).code(), Errc::corrupt);
    EXPECT_EQ(greeting_error(PageBytes(64, std::byte{1})).code(), Errc::corrupt);

    HelloFrame hello = good;
    hello.description_bytes = 10;
    EXPECT_EQ(greeting_error(bytes_of(hello)).code(), Errc::timed_out) << "its description does not come";
    hello = good;
    hello.state_bytes = 10;
    const auto pass_over = [](std::span<const std::byte>) -> Result<void> { return {}; };
    EXPECT_EQ(greeting_error(bytes_of(hello), {.receive = {.take_state = pass_over}}).code(),
              Errc::timed_out);
    hello = good;
    hello.has_zstd = true;
    EXPECT_EQ(greeting_error(bytes_of(hello), {.accepts_zstd = false}).code(), Errc::corrupt);
    ImageId id{};
    id[3] = std::byte{1};
    EXPECT_EQ(greeting_error(bytes_of(good), {.receive = {.expected_id = id}}).code(),
              Errc::invalid_argument);
    EXPECT_EQ(greeting_error(bytes_of(good), {.receive = {.max_image_bytes = image_bytes - 4096}}).code(),
              Errc::out_of_range);
    EXPECT_EQ(greeting_error(bytes_of(good), {.receive = {.max_image_bytes = image_bytes}}).message(),
              "no error");
}

TEST(RemoteSource, AGreetingWithWhatWasNotAskedForIsRefusedBeforeItIsRead) {
    HelloFrame hello{.image_bytes = image_bytes, .description_bytes = max_description_bytes};
    EXPECT_EQ(greeting_error(bytes_of(hello), {.wants_description = false}).code(), Errc::corrupt);
    // A state would have more than its patience: a second for each 16 MiB that are announced.
    hello = {.image_bytes = image_bytes, .state_bytes = std::uint64_t{128} << 20};
    FrameBytes said = bytes_of(hello);
    append_frame(said, StateFrame{std::array{std::byte{1}}});
    EXPECT_THAT(greeting_error(said).message(), HasSubstr("what was not asked for"));
}

TEST(RemoteSource, TheTimeInWhichAStateIsKeptIsNotTheServers) {
    FrameBytes said = bytes_of(HelloFrame{.image_bytes = image_bytes, .state_bytes = 3});
    for (int i = 0; i < 3; ++i) append_frame(said, StateFrame{std::array{std::byte{1}}});
    const auto keep_slowly = [](std::span<const std::byte>) -> Result<void> {
        std::this_thread::sleep_for(80ms);
        return {};
    };
    EXPECT_EQ(greeting_error(said, {.receive = {.take_state = keep_slowly}}).message(), "no error");
}

TEST(RemoteSource, TheLongestPatienceDoesNotWrap) {
    auto [client, server] = UnixStream::pair().value();
    FrameBytes said = bytes_of(HelloFrame{.image_bytes = image_bytes, .state_bytes = 40'000});
    const PageBytes half(20'000, std::byte{1});
    append_frame(said, StateFrame{half});
    append_frame(said, StateFrame{half});
    ASSERT_EQ(server.send(said)->count_bytes, said.size());
    std::uint64_t kept_bytes = 0;
    RemoteOptions options{.receive = {.patience = std::chrono::milliseconds::max()}};
    options.receive.take_state = [&](std::span<const std::byte> bytes) -> Result<void> {
        kept_bytes += bytes.size();
        return {};
    };
    const auto source = RemoteSource::adopt(std::move(client).release(), std::move(options));
    EXPECT_TRUE(source) << source.error().message();
    EXPECT_EQ(kept_bytes, 40'000U);
}

TEST(RemoteSource, APlaceWithoutAServerIsAnErrorAtOnce) {
    const TempFolder folder;
    EXPECT_EQ(RemoteSource::connect(folder.path_of("none")).error().code(), Errc::not_found);
    EXPECT_EQ(RemoteSource::adopt(open_file("/dev/null", OpenMode::read).value()).error().code(),
              Errc::invalid_argument);
}

TEST(RemoteSource, AServerThatTakesNoConnectionIsAnErrorInTime) {
    const TempFolder folder;
    const auto listener = UnixListener::create({.path = folder.path_of("s")}).value();
    const auto begin = Clock::now();
    std::vector<UnixStream> waiting;
    // The backlog of a listener is 128.
    for (int i = 0; i < 200; ++i) {
        auto stream = UnixStream::connect(folder.path_of("s"), Deadline{20ms});
        if (!stream) break;
        waiting.push_back(std::move(*stream));
    }
    const auto source = RemoteSource::connect(folder.path_of("s"), {.receive = {.patience = 100ms}});
    ASSERT_FALSE(source);
    EXPECT_EQ(source.error().code(), Errc::timed_out);
    EXPECT_LT(Clock::now() - begin, enough_time);
}

TEST(RemoteSource, AKilledServerIsAnErrorAtOnce) {
    const TempFolder folder;
    const std::string path = folder.path_of("s");
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        // The half of the image that the parent does not ask for in time never comes.
        class Sleeper : public MemorySource {
        public:
            using MemorySource::MemorySource;
            [[nodiscard]] Result<void> fetch(ImagePart wanted, PageSink& sink) override {
                if (wanted.offset_bytes >= image_bytes / 2) ::pause();
                return MemorySource::fetch(wanted, sink);
            }
        } image{random_image(64, 2)};
        auto loop = EventLoop::create();
        if (!loop) ::_exit(1);
        auto server = PageServer::create(*loop, image, {.path = path});
        static_cast<void>(server && loop->run());
        ::_exit(1);
    }
    std::unique_ptr<RemoteSource> source;
    EXPECT_TRUE(eventually([&] {
        auto connected = RemoteSource::connect(path, {.receive = {.patience = 20s}});
        if (connected) source = std::move(*connected);
        return source != nullptr;
    }));
    MemorySink sink{image_bytes};
    if (source) {
        EXPECT_TRUE(source->fetch({0, page_size_bytes}, sink));
        std::thread killer{[child] {
            std::this_thread::sleep_for(100ms);
            ::kill(child, SIGKILL);
        }};
        const auto begin = Clock::now();
        const auto gone = source->fetch({0, image_bytes}, sink);
        EXPECT_LT(Clock::now() - begin, 15s) << "long before its patience ends";
        killer.join();
        EXPECT_FALSE(gone);
        if (!gone) {
            EXPECT_EQ(gone.error().code(), Errc::unavailable);
        }
    } else {
        ::kill(child, SIGKILL);
    }
    EXPECT_EQ(::waitpid(child, nullptr, 0), child);
    EXPECT_FALSE(source->fetch({0, page_size_bytes}, sink));
    EXPECT_FALSE(RemoteSource::connect(path)) << "its stale socket";
}

/// Lazy memory behind a server that answers its first touch so. What health says of it.
std::string health_behind(const Liar::Answer& answer) {
    EXPECT_TRUE(install_fault_guard());
    Liar liar{answer};
    std::shared_ptr<PageSource> source = liar.source().value();
    std::atomic<int> count_failures{0};
    const auto pager = Pager::start({.source = std::move(source),
                                     .regions = {{0, image_bytes}},
                                     .on_failure = [&](const Error&) { ++count_failures; }})
                           .value();
    const auto memory = pager->memory(0).value();
    std::uint64_t value = 0;
    const auto begin = Clock::now();
    EXPECT_FALSE(try_load(memory->bytes().data(), value, std::memory_order_relaxed));
    EXPECT_FALSE(try_load(memory->bytes().data() + image_bytes / 2, value, std::memory_order_relaxed));
    EXPECT_LT(Clock::now() - begin, enough_time);
    EXPECT_TRUE(eventually([&] { return count_failures == 1; }));
    const auto health = pager->health();
    return health ? "well" : health.error().message();
}

TEST(RemoteSource, ThatDiesStallsOrLiesIsAnErrorOfThePagersMemoryInTime) {
    EXPECT_THAT(health_behind([](HandServer&, const RequestFrame&) {}), HasSubstr("within 300 ms"));
    EXPECT_THAT(health_behind([](HandServer& server, const RequestFrame&) { server.hang_up(); }),
                HasSubstr("page server"));
    EXPECT_THAT(health_behind([](HandServer& server, const RequestFrame&) { server.pages(40, 16, 7); }),
                HasSubstr("page server"));
}

TEST(RemoteSource, FeedsAPager) {
    const TempFolder folder;
    const auto image = random_image(64, 3);
    MemorySource served{image};
    LoopThread loop;
    auto server =
        loop.call([&](EventLoop& l) { return PageServer::create(l, served, {.path = folder.path_of("s")}); });
    ASSERT_TRUE(server);
    {
        std::shared_ptr<PageSource> source = RemoteSource::connect(folder.path_of("s")).value();
        const auto pager =
            Pager::start({.source = std::move(source), .regions = {{0, image_bytes}}, .is_filled = true})
                .value();
        const auto memory = pager->memory(0).value();
        EXPECT_TRUE(pager->wait_until_filled(enough_time));
        EXPECT_TRUE(std::ranges::equal(memory->bytes(), image));
    }
    loop.call([&](EventLoop&) { server = Error{Errc::io, "gone"}; });
}

TEST(RemoteSource, WhateverFailsIsAnErrorAndLeavesNothing) {
    // The server does not run: what it says is there before, so that only the client's calls are failed.
    FrameBytes said = bytes_of(HelloFrame{.image_bytes = image_bytes});
    PageEncoder{}.append_zeros(said, {0, page_size_bytes});
    append_frame(said, DoneFrame{1});
    const std::size_t hello_bytes = bytes_of(HelloFrame{.image_bytes = image_bytes}).size();
    const TempFolder folder;
    std::optional<Error> last;
    const auto count = for_each_fault([&]() -> Result<void> {
        std::array<int, 2> ends{-1, -1};
        EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
        const Fd server{ends[1]};
        EXPECT_EQ(::write(ends[1], said.data(), hello_bytes), static_cast<ssize_t>(hello_bytes));
        const auto source = GM_TRY(RemoteSource::adopt(Fd{ends[0]}, {.receive = {.patience = 1s}}));
        const std::size_t rest = said.size() - hello_bytes;
        EXPECT_EQ(::write(ends[1], said.data() + hello_bytes, rest), static_cast<ssize_t>(rest));
        MemorySink sink{image_bytes};
        auto fetched = source->fetch({0, page_size_bytes}, sink);
        if (!fetched) {
            EXPECT_FALSE(source->fetch({0, page_size_bytes}, sink)) << "and it stays one";
        }
        return fetched;
    });
    EXPECT_GE(count, 6U);
}

}  // namespace
}  // namespace guestmem
