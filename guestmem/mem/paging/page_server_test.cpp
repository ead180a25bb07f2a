// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/page_server.hpp"

#include <gmock/gmock.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "guestmem/mem/paging/remote_source.hpp"
#include "guestmem/mem/paging/testing/memory_pages.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/lingering_socket.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"
#include "guestmem/sys/unix_socket.hpp"

namespace guestmem {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using testing::eventually;
using testing::for_each_fault;
using ::testing::HasSubstr;
using testing::LingeringSocket;
using testing::LoopThread;
using testing::MemorySink;
using testing::MemorySource;
using testing::PageBytes;
using testing::random_image;
using testing::Resources;
using testing::TempFolder;

constexpr std::size_t count_pages = 2000;
constexpr std::uint64_t image_bytes = count_pages * page_size_bytes;

class PageServing : public ::testing::Test {
protected:
    void start(PageServerOptions options = {}) {
        options.path = path();
        server_ = loop_.call([&](EventLoop& loop) {
            auto server = PageServer::create(loop, image_, options);
            EXPECT_TRUE(server) << (server ? "" : server.error().message());
            return server ? std::make_unique<PageServer>(std::move(*server)) : nullptr;
        });
    }
    ~PageServing() override { stop(); }
    void stop() {
        loop_.call([&](EventLoop&) { server_.reset(); });
    }
    [[nodiscard]] std::string path() const { return folder_.path_of("pages"); }
    [[nodiscard]] PageServerCounts counts() {
        return loop_.call([&](EventLoop&) { return server_->counts(); });
    }
    [[nodiscard]] std::size_t count_clients() {
        return loop_.call([&](EventLoop&) { return server_->count_clients(); });
    }
    [[nodiscard]] std::unique_ptr<RemoteSource> connect(RemoteOptions options = {}) const {
        options.receive.patience = 20s;
        auto source = RemoteSource::connect(path(), std::move(options));
        EXPECT_TRUE(source) << (source ? "" : source.error().message());
        return source ? std::move(*source) : nullptr;
    }
    /// A good client that gets all, however late the others make it.
    void expect_served(std::chrono::milliseconds limit = 10s) const {
        const auto source = connect();
        ASSERT_NE(source, nullptr);
        MemorySink sink{image_bytes};
        const auto begin = Clock::now();
        ASSERT_TRUE(source->fetch({0, image_bytes}, sink));
        EXPECT_LT(Clock::now() - begin, limit);
        EXPECT_EQ(sink.image, image_.image);
    }

    TempFolder folder_;
    MemorySource image_{random_image(count_pages, 20260821)};
    LoopThread loop_;
    std::unique_ptr<PageServer> server_;
};

template <typename... Frames>
FrameBytes bytes_of(const Frames&... frames) {
    FrameBytes bytes;
    (append_frame(bytes, frames), ...);
    return bytes;
}

/// A client that does as the test says. What it receives is parsed.
class HandClient {
public:
    explicit HandClient(const std::string& path)
        : stream_(UnixStream::connect(path, Deadline{10s}).value()) {}

    void send(std::span<const std::byte> bytes) const {
        while (!bytes.empty()) {
            const auto sent = stream_.send(bytes);
            if (!sent) return;
            bytes = bytes.subspan(sent->count_bytes);
        }
    }
    /// The next frame; nothing when the server has closed, or says what is no frame.
    std::optional<PageFrame> next() {
        const Deadline deadline{15s};
        for (;;) {
            auto frame = parser_.next();
            if (!frame) return std::nullopt;
            if (*frame) return std::move(*frame);
            const auto is_readable = wait_readable(stream_.view(), deadline);
            if (!is_readable || !*is_readable) {
                ADD_FAILURE() << "the server neither answers nor closes";
                return std::nullopt;
            }
            const auto received = stream_.receive(parser_.room());
            if (!received || !*received || (*received)->count_bytes == 0) return std::nullopt;
            parser_.take((*received)->count_bytes);
        }
    }
    /// The code of an error frame, the last thing that the server says.
    std::optional<Errc> last_word() {
        std::optional<Errc> code;
        while (const auto frame = next())
            if (const auto* const said = std::get_if<ErrorFrame>(&*frame)) code = said->code;
        return code;
    }
    [[nodiscard]] const UnixStream& stream() const { return stream_; }
    void hang_up() { stream_ = UnixStream{}; }

private:
    UnixStream stream_;
    FrameParser parser_{FrameFlow::from_server};
};

TEST_F(PageServing, GivesEachPageRawAndCompressed) {
    for (const int level : {0, 3}) {
        for (const bool accepts_zstd : {false, true}) {
            start({.offer = {.zstd_level = level}});
            const auto source = connect({.accepts_zstd = accepts_zstd});
            EXPECT_EQ(source->greeting().has_zstd, level > 0 && accepts_zstd);
            MemorySink sink{image_bytes};
            ASSERT_TRUE(source->fetch({0, image_bytes}, sink));
            EXPECT_EQ(sink.image, image_.image);
            EXPECT_TRUE(sink.has_each_once());
            stop();
        }
    }
}

TEST_F(PageServing, GivesExactlyTheWantedPages) {
    start({.offer = {.zstd_level = 1}});
    const auto source = connect();
    std::mt19937_64 random{5};
    for (int turn = 0; turn < 200; ++turn) {
        const std::uint64_t begin = random() % count_pages;
        const std::uint64_t count = 1 + random() % std::min<std::uint64_t>(count_pages - begin, 100);
        MemorySink sink{image_bytes};
        ASSERT_TRUE(source->fetch({begin * page_size_bytes, count * page_size_bytes}, sink));
        ASSERT_EQ(sink.count_given(), count);
        for (std::uint64_t page = begin; page < begin + count; ++page) ASSERT_EQ(sink.counts[page], 1);
        const auto at = static_cast<std::ptrdiff_t>(begin * page_size_bytes);
        ASSERT_TRUE(std::equal(sink.image.begin() + at,
                               sink.image.begin() + at + static_cast<std::ptrdiff_t>(count * page_size_bytes),
                               image_.image.begin() + at));
    }
}

TEST_F(PageServing, GreetsWithWhatAClientWants) {
    PageOffer offer{.description = std::string(200'000, 'd'), .state_bytes = 300'000};
    offer.id.fill(std::byte{9});
    offer.read_state = [](std::uint64_t offset_bytes, std::span<std::byte> bytes) -> Result<void> {
        for (std::size_t i = 0; i < bytes.size(); ++i)
            bytes[i] = static_cast<std::byte>((offset_bytes + i) / 1000);
        return {};
    };
    start({.offer = offer});
    PageBytes state;
    RemoteOptions options;
    options.receive.take_state = [&](std::span<const std::byte> bytes) -> Result<void> {
        state.insert(state.end(), bytes.begin(), bytes.end());
        return {};
    };
    options.receive.expected_id = offer.id;
    const auto all = connect(options);
    const auto nothing = connect({.wants_description = false});

    EXPECT_EQ(all->greeting().description, offer.description);
    ASSERT_EQ(state.size(), 300'000U);
    EXPECT_EQ(state[299'999], std::byte{299 - 256});
    EXPECT_EQ(nothing->greeting().description, "");
    EXPECT_EQ(nothing->greeting().state_bytes, 0U);
    MemorySink sink{image_bytes};
    EXPECT_TRUE(all->fetch({0, page_size_bytes}, sink));
    EXPECT_TRUE(nothing->fetch({page_size_bytes, page_size_bytes}, sink));
}

TEST_F(PageServing, ServesManyAtOnce) {
    start({.offer = {.zstd_level = 1}});
    std::vector<std::thread> clients;
    for (std::uint64_t i = 0; i < 6; ++i)
        clients.emplace_back([&, i] {
            const auto source = connect({.accepts_zstd = i % 2 == 0});
            ASSERT_NE(source, nullptr);
            MemorySink sink{image_bytes};
            std::vector<std::uint64_t> parts;
            for (std::uint64_t at = 0; at < image_bytes; at += 50 * page_size_bytes) parts.push_back(at);
            std::ranges::shuffle(parts, std::mt19937_64{i});
            for (const std::uint64_t at : parts)
                ASSERT_TRUE(source->fetch({at, std::min(50 * page_size_bytes, image_bytes - at)}, sink));
            EXPECT_EQ(sink.image, image_.image);
        });
    for (std::thread& client : clients) client.join();
    EXPECT_EQ(counts().served_pages, 6 * count_pages);
}

TEST_F(PageServing, AnswersInTheOrderOfTheRequests) {
    start();
    HandClient client{path()};
    FrameBytes bytes = bytes_of(JoinFrame{});
    constexpr std::uint64_t count_requests = 3 * max_waiting_requests;
    for (std::uint64_t i = 0; i < count_requests; ++i)
        append_frame(bytes, RequestFrame{.number = 1000 - i, .part = {i * page_size_bytes, page_size_bytes}});
    client.send(bytes);
    ::shutdown(client.stream().view().number(), SHUT_WR);

    std::vector<std::uint64_t> numbers;
    while (const auto frame = client.next())
        if (const auto* const done = std::get_if<DoneFrame>(&*frame)) numbers.push_back(done->number);

    ASSERT_EQ(numbers.size(), count_requests) << "a client that closes its half gets what it asked for";
    for (std::uint64_t i = 0; i < count_requests; ++i) EXPECT_EQ(numbers[i], 1000 - i);
    EXPECT_TRUE(eventually([&] { return count_clients() == 0; }));
}

TEST_F(PageServing, AFloodOfRequestsHoldsNobodyUp) {
    start();
    std::atomic<bool> is_over{false};
    std::thread flood{[&] {
        HandClient client{path()};
        client.send(bytes_of(JoinFrame{}));
        FrameBytes bytes;
        for (std::uint64_t i = 0; i < 10'000; ++i)
            append_frame(bytes, RequestFrame{.number = i, .part = {0, image_bytes}});
        ASSERT_TRUE(client.stream().set_nonblocking());
        // It reads as fast as it can, and asks for all again and again.
        std::size_t at = 0;
        while (!is_over && client.next()) {
            const auto sent = client.stream().send(std::span{bytes}.subspan(at));
            if (sent) at = (at + sent->count_bytes) % bytes.size();
        }
    }};
    EXPECT_TRUE(eventually([&] { return counts().served_pages > 0; }));
    const auto source = connect();
    for (int turn = 0; turn < 50; ++turn) {
        MemorySink sink{image_bytes};
        const auto begin = Clock::now();
        ASSERT_TRUE(
            source->fetch({static_cast<std::uint64_t>(turn) * page_size_bytes, page_size_bytes}, sink));
        EXPECT_LT(Clock::now() - begin, 2s);
    }
    is_over = true;
    flood.join();
}

TEST_F(PageServing, AClientThatNeverReadsIsDroppedAndHoldsNobodyUp) {
    start({.stall_timeout_ms = 500});
    HandClient deaf{path()};
    deaf.send(bytes_of(JoinFrame{}, RequestFrame{.number = 1, .part = {0, image_bytes}}));
    EXPECT_TRUE(eventually([&] { return counts().served_pages > 0; }));
    std::this_thread::sleep_for(50ms);
    const std::uint64_t held = counts().served_pages;
    EXPECT_LT(held, count_pages) << "what it does not read is not made";

    expect_served();

    EXPECT_TRUE(eventually([&] { return counts().dropped_clients == 1; }));
    EXPECT_EQ(deaf.last_word(), std::nullopt);
    EXPECT_TRUE(eventually([&] { return count_clients() == 0; }));
}

TEST_F(PageServing, NobodyIsLateBecauseTheSourceWas) {
    class SlowSource : public MemorySource {
    public:
        using MemorySource::MemorySource;
        [[nodiscard]] Result<void> fetch(ImagePart wanted, PageSink& sink) override {
            std::this_thread::sleep_for(300ms);
            return MemorySource::fetch(wanted, sink);
        }
    } slow{random_image(3 * max_piece_bytes / page_size_bytes, 6)};
    auto server = loop_.call([&](EventLoop& loop) {
        return PageServer::create(loop, slow,
                                  {.path = path(), .join_timeout_ms = 250, .stall_timeout_ms = 250});
    });
    ASSERT_TRUE(server);
    const auto first = connect();
    const auto second = connect();
    MemorySink sink{slow.image.size()};
    std::thread other{[&] {
        MemorySink others{slow.image.size()};
        EXPECT_TRUE(first->fetch({0, slow.image.size()}, others));
    }};
    EXPECT_TRUE(second->fetch({0, slow.image.size()}, sink));
    other.join();
    EXPECT_EQ(sink.image, slow.image);
    loop_.call([&](EventLoop&) { server = Error{Errc::io, "gone"}; });
}

TEST_F(PageServing, AClientThatNeverJoinsIsDroppedAndOneThatAsksForNothingStays) {
    start({.join_timeout_ms = 100, .stall_timeout_ms = 100});
    HandClient mute{path()};
    HandClient half{path()};
    FrameBytes half_a_frame = bytes_of(JoinFrame{});
    half_a_frame.resize(10);
    half.send(half_a_frame);
    const auto idle = connect();
    EXPECT_TRUE(eventually([&] { return counts().dropped_clients == 2; }));
    EXPECT_EQ(mute.next(), std::nullopt);
    std::this_thread::sleep_for(600ms);
    MemorySink sink{image_bytes};
    EXPECT_TRUE(idle->fetch({0, page_size_bytes}, sink));
}

TEST_F(PageServing, ABrokenProtocolIsSaidAndCloses) {
    start();
    const RequestFrame good{.number = 1, .part = {0, page_size_bytes}};
    FrameBytes another_version = bytes_of(JoinFrame{});
    another_version[frame_head_bytes + 8] = std::byte{2};
    const std::vector<std::pair<FrameBytes, Errc>> cases{
        {FrameBytes(5000, std::byte{0xff}), Errc::corrupt},
        {bytes_of(good), Errc::corrupt},
        {bytes_of(JoinFrame{}, JoinFrame{}), Errc::corrupt},
        {bytes_of(HelloFrame{.image_bytes = 4096}), Errc::corrupt},
        {another_version, Errc::unsupported},
        {bytes_of(JoinFrame{}, RequestFrame{.number = 1, .part = {1, 4096}}), Errc::corrupt},
        {bytes_of(JoinFrame{}, RequestFrame{.number = 1, .part = {0, 0}}), Errc::corrupt},
        {bytes_of(JoinFrame{}, RequestFrame{.number = 1, .part = {0, image_bytes + 4096}}),
         Errc::out_of_range},
        {bytes_of(JoinFrame{}, RequestFrame{.number = 1, .part = {image_bytes, 4096}}), Errc::out_of_range},
        {bytes_of(JoinFrame{}, RequestFrame{.number = 1, .part = {0 - std::uint64_t{4096}, 8192}}),
         Errc::corrupt},
    };
    for (std::size_t i = 0; i < cases.size(); ++i) {
        HandClient client{path()};
        client.send(cases[i].first);
        EXPECT_EQ(client.last_word(), cases[i].second) << "case " << i;
    }
    EXPECT_TRUE(eventually([&] { return count_clients() == 0; }));
    EXPECT_EQ(counts().dropped_clients, cases.size());
    expect_served();
}

TEST_F(PageServing, AClientThatSendsDescriptorsIsToldWhyAndClosed) {
    start();
    for (const bool has_joined : {false, true}) {
        HandClient client{path()};
        if (has_joined) {
            client.send(bytes_of(JoinFrame{}));
            EXPECT_TRUE(client.next());
        }
        const std::array fds{client.stream().view()};
        const RequestFrame request{.number = 1, .part = {0, page_size_bytes}};
        ASSERT_TRUE(client.stream().send(has_joined ? bytes_of(request) : bytes_of(JoinFrame{}), fds));
        EXPECT_EQ(client.last_word(), Errc::invalid_argument);
    }
    EXPECT_TRUE(eventually([&] { return count_clients() == 0; }));
    EXPECT_EQ(counts().dropped_clients, 2U);
    expect_served();
}

TEST_F(PageServing, ItsEndDoesNotWaitForADescriptorThatNobodyRead) {
    enum class End : std::uint8_t { of_a_client, of_one_in_the_backlog, by_another_in_its_place };
    for (const End end : {End::of_a_client, End::of_one_in_the_backlog, End::by_another_in_its_place}) {
        start();
        LingeringSocket slow;
        std::optional<HandClient> client;
        if (end != End::of_one_in_the_backlog) {
            client.emplace(path());
            EXPECT_TRUE(eventually([&] { return count_clients() == 1; }));
        }
        const auto took = loop_.call([&](EventLoop& loop) {
            if (!client) client.emplace(path());
            slow.give_to(client->stream(), bytes_of(JoinFrame{}));
            auto other = PageServer::create(loop, image_, {.path = folder_.path_of("other")}).value();
            const auto begin = Clock::now();
            end == End::by_another_in_its_place ? void(*server_ = std::move(other)) : server_.reset();
            return Clock::now() - begin;
        });
        EXPECT_LT(took, LingeringSocket::time / 2) << "end " << static_cast<int>(end);
    }
    EXPECT_TRUE(RemoteSource::connect(folder_.path_of("other"))) << "the one in its place serves";
}

TEST_F(PageServing, RunsOfZerosStayLargePiecesFromRequestToRequest) {
    MemorySource zeros{PageBytes(64 * max_piece_bytes)};
    auto server =
        loop_.call([&](EventLoop& loop) { return PageServer::create(loop, zeros, {.path = path()}); });
    ASSERT_TRUE(server);
    const auto source = connect();
    MemorySink sink{zeros.image.size()};
    constexpr std::uint64_t step_bytes = 4 * max_piece_bytes;
    for (std::uint64_t at = 0; at < zeros.image.size(); at += step_bytes)
        ASSERT_TRUE(source->fetch({at, step_bytes}, sink));
    EXPECT_TRUE(sink.has_each_once());
    EXPECT_EQ(zeros.count_fetches, 3U + 15U) << "pieces of 1, 2 and 1 units; then each request is one";
    loop_.call([&](EventLoop&) { server = Error{Errc::io, "gone"}; });
}

TEST_F(PageServing, ClientsThatComeAndGoLeaveNothing) {
    start({.join_timeout_ms = 50});
    expect_served();
    EXPECT_TRUE(eventually([&] { return count_clients() == 0; }));
    const Resources before = Resources::look();
    std::mt19937_64 random{17};
    for (int turn = 0; turn < 60; ++turn) {
        HandClient client{path()};
        FrameBytes bytes = bytes_of(JoinFrame{}, RequestFrame{.number = 1, .part = {0, image_bytes}});
        bytes.resize(random() % (bytes.size() + 1));
        client.send(bytes);
        if (turn % 3 == 0) client.next();
        client.hang_up();
    }
    EXPECT_TRUE(eventually([&] { return count_clients() == 0; }));
    EXPECT_EQ(Resources::look(), before);
    expect_served();
}

TEST_F(PageServing, AFailedSourceIsSaidAndAnotherClientIsServed) {
    start();
    const auto good = connect();
    const auto bad = connect();
    MemorySink sink{image_bytes};
    ASSERT_TRUE(good->fetch({0, page_size_bytes}, sink));
    loop_.call([&](EventLoop&) { image_.fails_at = image_bytes / 2; });

    const auto failed = bad->fetch({image_bytes - page_size_bytes, page_size_bytes}, sink);

    ASSERT_FALSE(failed);
    EXPECT_EQ(failed.error().code(), Errc::io);
    EXPECT_THAT(failed.error().message(), HasSubstr("the disk is gone"));
    EXPECT_TRUE(good->fetch({page_size_bytes, page_size_bytes}, sink));
    EXPECT_EQ(counts().source_errors, 1U);
    EXPECT_EQ(counts().dropped_clients, 0U) << "it is not what the client did";
    loop_.call([&](EventLoop&) { image_.fails_at.reset(); });
}

TEST_F(PageServing, LetsInAsManyClientsAsTheLimitAndNotOneMore) {
    start();
    std::vector<std::unique_ptr<RemoteSource>> clients;
    for (std::size_t i = 0; i < max_page_clients; ++i) {
        clients.push_back(connect());
        ASSERT_NE(clients.back(), nullptr);
    }
    const auto refused = RemoteSource::connect(path());
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::exhausted);
    EXPECT_THAT(refused.error().message(), HasSubstr("64 clients are connected"));
    clients.pop_back();
    EXPECT_TRUE(eventually([&] { return count_clients() == max_page_clients - 1; }));
    expect_served();
}

/// What a process of that user sees of the server: 0 served, 1 refused by the server, 2 by the kernel.
int as_user(uid_t user, std::vector<gid_t> groups, const std::string& path) {
    const pid_t child = ::fork();
    if (child == 0) {
        if (::setgroups(groups.size(), groups.data()) != 0 || ::setgid(user) != 0 || ::setuid(user) != 0)
            ::_exit(3);
        const auto source = RemoteSource::connect(path, {.receive = {.patience = 10s}});
        if (source) ::_exit(0);
        ::_exit(source.error().message().find("these pages are served to") != std::string::npos ? 1 : 2);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_F(PageServing, ServesItsOwnUserRootAndAGroup) {
    if (::getuid() != 0) GTEST_SKIP() << "SKIPPED: only root becomes other users";
    constexpr uid_t other = 12345;
    constexpr gid_t group = 23456;
    ASSERT_EQ(::chmod(folder_.path().c_str(), 0755), 0);
    start();
    EXPECT_EQ(as_user(other, {}, path()), 2) << "the file's mode";
    ASSERT_EQ(::chmod(path().c_str(), 0666), 0);
    EXPECT_EQ(as_user(other, {}, path()), 1) << "the server, whatever the file's mode became";
    EXPECT_TRUE(eventually([&] { return counts().refused_clients == 1; }));
    stop();

    start({.group = group});
    EXPECT_EQ(as_user(other, {}, path()), 2);
    EXPECT_EQ(as_user(other, {group}, path()), 0);
}

/// How many connections a process of that user and group holds at once before one is refused; -1 when not for this.
int most_connections(uid_t user, gid_t group, const std::string& path) {
    const pid_t child = ::fork();
    if (child == 0) {
        if (::setgroups(1, &group) != 0 || ::setgid(user) != 0 || ::setuid(user) != 0) ::_exit(255);
        std::vector<std::unique_ptr<RemoteSource>> sources;
        for (;;) {
            auto source = RemoteSource::connect(path, {.receive = {.patience = 10s}});
            if (!source) ::_exit(source.error().code() == Errc::exhausted ? int(sources.size()) : 255);
            sources.push_back(std::move(*source));
        }
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) != 255 ? WEXITSTATUS(status) : -1;
}

TEST_F(PageServing, AMemberOfTheGroupHasAShareAndNotAll) {
    if (::getuid() != 0) GTEST_SKIP() << "SKIPPED: only root becomes other users";
    constexpr gid_t group = 23456;
    ASSERT_EQ(::chmod(folder_.path().c_str(), 0755), 0);
    start({.group = group});
    std::vector<std::unique_ptr<RemoteSource>> own;
    for (std::size_t i = 0; i <= max_clients_of_member; ++i) {
        own.push_back(connect());
        ASSERT_NE(own.back(), nullptr) << "the own user is no member";
    }
    for (const uid_t member : {12345U, 12346U, 12345U}) {
        EXPECT_EQ(most_connections(member, group, path()), int(max_clients_of_member));
        EXPECT_TRUE(eventually([&] { return count_clients() == own.size(); }));
    }
}

TEST_F(PageServing, WhatCannotBeOfferedIsRefused) {
    EXPECT_FALSE(loop_.call([&](EventLoop& loop) {
        return PageServer::create(loop, image_, {.path = path(), .offer = {.zstd_level = 99}}).has_value();
    }));
    MemorySource nothing{PageBytes{}};
    EXPECT_FALSE(loop_.call(
        [&](EventLoop& loop) { return PageServer::create(loop, nothing, {.path = path()}).has_value(); }));
    EXPECT_TRUE(folder_.entries().empty());
}

/// One round of a client against a server in the same thread; so all calls of both are failed, in an order that is
/// always the same.
class OneThread {
public:
    explicit OneThread(std::string path) : path_(std::move(path)) {}

    Result<void> run() {
        EventLoop loop = GM_TRY(EventLoop::create());
        const PageServer server = GM_TRY(PageServer::create(loop, image_, {.path = path_}));
        const UnixStream client = GM_TRY(UnixStream::connect(path_, Deadline{1s}));
        GM_TRY(client.set_nonblocking());
        const SendOutcome sent = GM_TRY(
            client.send(bytes_of(JoinFrame{}, RequestFrame{.number = 1, .part = {0, 8 * page_size_bytes}})));
        EXPECT_GT(sent.count_bytes, 0U);
        FrameParser parser{FrameFlow::from_server};
        for (int turn = 0; turn < 200; ++turn) {
            GM_TRY(loop.run_once(5));
            const auto received = GM_TRY(client.receive(parser.room()));
            if (received && received->count_bytes == 0) return Error{Errc::unavailable, "closed"};
            if (received) parser.take(received->count_bytes);
            while (const auto frame = GM_TRY(parser.next())) {
                if (std::holds_alternative<DoneFrame>(*frame)) return {};
                if (std::holds_alternative<ErrorFrame>(*frame)) return Error{Errc::io, "an error frame"};
            }
        }
        return Error{Errc::timed_out, "no answer"};
    }

private:
    MemorySource image_{random_image(8, 3)};
    std::string path_;
};

TEST(PageServerFaults, WhateverFailsNothingIsLeftAndNothingHangs) {
    const TempFolder folder;
    OneThread round{folder.path_of("pages")};
    const auto count = for_each_fault(
        {.faults = testing::FaultsAre::survivable}, [&] { return round.run(); },
        [&] { EXPECT_TRUE(folder.entries().empty()); });
    EXPECT_GE(count, 20U);
}

}  // namespace
}  // namespace guestmem
