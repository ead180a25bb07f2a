// SPDX-License-Identifier: Apache-2.0
#include "guestmem/control/client.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "guestmem/control/server.hpp"
#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/testing/resources.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem::control {
namespace {

using testing::eventually;
using testing::for_each_fault;
using ::testing::HasSubstr;
using testing::LoopThread;
using testing::Resources;
using ::testing::SizeIs;
using testing::TempFolder;

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span{text}); }

/// A client and the other end of its connection, on which the test says what a service would.
class Pair {
public:
    explicit Pair(int timeout_ms = 5'000)
        : listener_(UnixListener::create({.path = folder_.path_of("s")}).value()),
          client_(Client::connect(listener_.path(), timeout_ms).value()),
          service_(std::move(*listener_.accept().value())) {}

    Client& client() { return client_; }
    UnixStream& service() { return service_; }
    /// What the client will read as the answer of its next call.
    void say(std::string_view text, std::span<const FdView> fds = {}) {
        ASSERT_EQ(service_.send(bytes_of(text), fds)->count_bytes, text.size());
    }

private:
    TempFolder folder_;
    UnixListener listener_;
    Client client_;
    UnixStream service_;
};

Errc code_of(const Result<ClientAnswer>& answer) {
    EXPECT_FALSE(answer);
    return answer ? Errc::io : answer.error().code();
}

TEST(Client, SendsOneLineWithAnIdThatGrows) {
    Pair pair;
    std::array<std::byte, 1024> buffer{};
    pair.say("{\"v\":1,\"id\":1,\"result\":{}}\n");
    ASSERT_TRUE(pair.client().call("share.stat", R"({"share":"m"})"));
    const std::size_t count = (*pair.service().receive(buffer))->count_bytes;

    EXPECT_EQ(std::string(reinterpret_cast<const char*>(buffer.data()), count),
              "{\"args\":{\"share\":\"m\"},\"call\":\"share.stat\",\"id\":1,\"v\":1}\n");
    pair.say("{\"v\":1,\"id\":2,\"result\":{}}\n");
    EXPECT_TRUE(pair.client().call("share.stat", "{}"));
}

TEST(Client, TakesAnAnswerInPieces) {
    Pair pair;
    pair.say("{\"v\":1,\"id\":1,");
    std::thread service{[&] {
        std::this_thread::sleep_for(std::chrono::milliseconds{20});
        pair.say("\"result\":{\"x\":5}}\n");
    }};
    const auto answer = pair.client().call("a", "{}");
    service.join();

    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->result, R"({"x":5})");
}

TEST(Client, GivesTheErrorOfTheServiceAsItsOwn) {
    Pair pair;
    pair.say("{\"v\":1,\"id\":1,\"error\":{\"code\":\"busy\",\"errno\":16,\"message\":\"slot 3: taken\"}}\n");

    const auto answer = pair.client().call("a", "{}");

    EXPECT_EQ(code_of(answer), Errc::busy);
    EXPECT_EQ(answer.error().os_error(), 16);
    EXPECT_EQ(answer.error().message(), "slot 3: taken");
}

TEST(Client, OwnsTheDescriptorsOfAnAnswer) {
    Pair pair;
    const EventFd bell = EventFd::create().value();
    const std::array fds{bell.view(), bell.view()};
    pair.say("{\"v\":1,\"id\":1,\"result\":{},\"fds\":2}\n", fds);

    auto answer = pair.client().call("a", "{}");

    ASSERT_TRUE(answer);
    ASSERT_THAT(answer->fds, SizeIs(2));
    ASSERT_TRUE(EventFd::adopt(std::move(answer->fds[1]))->ring());
    EXPECT_EQ(*bell.drain(), 1U);
}

TEST(Client, RefusesDescriptorsThatDoNotMatchAndClosesThem) {
    const EventFd bell = EventFd::create().value();
    const std::array fds{bell.view()};
    for (const std::string_view announced : {"0", "2"}) {
        Pair pair;
        const Resources before = Resources::look();
        pair.say(fmt::format("{{\"v\":1,\"id\":1,\"result\":{{}},\"fds\":{}}}\n", announced), fds);
        EXPECT_EQ(code_of(pair.client().call("a", "{}")), Errc::corrupt) << announced;
        EXPECT_EQ(Resources::look(), before) << announced;
    }
}

TEST(Client, RefusesAnAnswerThatIsNotOne) {
    for (const std::string_view line :
         {"{\"v\":1,\"id\":2,\"result\":{}}\n", "{}\n", "\n", "hello\n", "\xff\n"}) {
        Pair pair;
        pair.say(line);
        EXPECT_EQ(code_of(pair.client().call("a", "{}")), Errc::corrupt) << line;
    }
}

TEST(Client, RefusesAnAnswerWithoutEnd) {
    Pair pair;
    std::thread service{[&] {
        const std::string chunk(64 * 1024, ' ');
        // Until the client has read enough and is gone.
        for (std::size_t sent = 0; sent < 4 * max_answer_bytes;) {
            const auto outcome = pair.service().send(bytes_of(chunk));
            if (!outcome) break;
            sent += outcome->count_bytes;
            if (outcome->status == SendStatus::would_block) {
                if (sent > max_answer_bytes) break;
                std::this_thread::sleep_for(std::chrono::milliseconds{1});
            }
        }
    }};
    const auto answer = pair.client().call("a", "{}");
    service.join();

    EXPECT_EQ(code_of(answer), Errc::corrupt);
    EXPECT_THAT(answer.error().message(), HasSubstr("longer than"));
}

TEST(Client, SaysThatTheServiceClosed) {
    Pair pair;
    pair.service() = UnixStream{};
    EXPECT_EQ(code_of(pair.client().call("a", "{}")), Errc::unavailable);
}

TEST(Client, DoesNotWaitLongerThanItsTimeout) {
    Pair pair{50};
    const auto answer = pair.client().call("a", "{}");
    EXPECT_EQ(code_of(answer), Errc::timed_out);
    EXPECT_THAT(answer.error().message(), HasSubstr("50 ms"));
}

TEST(Client, DoesNotWaitLongerThanItsTimeoutForAnAnswerInDrops) {
    Pair pair{200};
    std::atomic<bool> is_done = false;
    std::thread service{[&] {
        while (!is_done) {
            static_cast<void>(pair.service().send(bytes_of(" ")).has_value());
            std::this_thread::sleep_for(std::chrono::milliseconds{20});
        }
    }};
    std::thread limit{[&] {
        // Should the client go on with every drop, the service closes.
        if (!eventually([&] { return is_done.load(); }, std::chrono::seconds{5})) pair.service().shut_down();
    }};
    const auto answer = pair.client().call("a", "{}");
    is_done = true;
    service.join();
    limit.join();

    EXPECT_EQ(code_of(answer), Errc::timed_out);
}

TEST(Client, SendsARequestOfTheLimitAndRefusesOnePast) {
    const std::size_t empty = encode_request({.id = 1, .call = "a", .arguments = R"({"pad":""})"}).size() - 1;
    const auto arguments = [&](std::size_t count_bytes) {
        return R"({"pad":")" + std::string(count_bytes - empty, 'x') + R"("})";
    };
    Pair pair;
    pair.say("{\"v\":1,\"id\":1,\"result\":{}}\n");

    EXPECT_TRUE(pair.client().call("a", arguments(max_request_bytes)));
    const auto refused = pair.client().call("a", arguments(max_request_bytes + 1));

    EXPECT_EQ(code_of(refused), Errc::out_of_range);
    EXPECT_THAT(refused.error().message(), HasSubstr("65537 bytes"));
}

TEST(Client, SaysHowToStartAServiceThatIsNotThere) {
    const TempFolder folder;
    const auto client = Client::connect(folder.path_of("nobody"));
    ASSERT_FALSE(client);
    EXPECT_EQ(client.error().code(), Errc::unavailable);
    EXPECT_THAT(client.error().message(), HasSubstr(folder.path_of("nobody")));
    EXPECT_THAT(client.error().message(), HasSubstr("--control"));
}

TEST(Client, WhateverFailsNothingIsLeft) {
    const TempFolder folder;
    const auto listener = UnixListener::create({.path = folder.path_of("s")}).value();
    const EventFd bell = EventFd::create().value();
    const std::array fds{bell.view()};
    const auto count = for_each_fault(
        [&]() -> Result<void> {
            Client client = GM_TRY(Client::connect(listener.path(), 1'000));
            const auto service = GM_TRY(listener.accept());
            if (!service) return Error{Errc::io, "nobody to accept"};
            GM_TRY(service->send(bytes_of("{\"v\":1,\"id\":1,\"result\":{},\"fds\":1}\n"), fds));
            GM_TRY(client.call("a", "{}"));
            return {};
        },
        [&] {
            while (listener.accept()->has_value()) {
            }
        });
    // Socket, the time for connect, connect, no time, accept, send; send, poll, receive of the call.
    EXPECT_EQ(count, 9U);
}

/// A server in a thread of its own; clients call it from others.
// gtest destroys fixtures through classes of its own.
// NOLINTNEXTLINE(cppcoreguidelines-virtual-class-destructor)
class ClientAndServer : public ::testing::Test {
protected:
    void start(std::uint64_t idle_timeout_ms = 60'000) {
        server_ = loop_.call([&](EventLoop& loop) {
            return std::optional{
                Server::create(
                    loop, {.socket = {.path = path()}, .idle_timeout_ms = idle_timeout_ms},
                    [this](const PeerCredentials&, const Request& request) { return answer(request); })
                    .value()};
        });
    }
    ~ClientAndServer() override {
        loop_.call([&](EventLoop&) { server_.reset(); });
    }
    Result<Outcome> answer(const Request& request) {
        Outcome outcome{.result = request.arguments, .fds = {}};
        if (request.call == "bell") outcome.fds.push_back(GM_TRY(open_bell()));
        return outcome;
    }
    /// The one bell of this test.
    Result<Fd> open_bell() {
        const Fd* const bell = &bell_;
        return bell->duplicate();
    }
    [[nodiscard]] std::string path() const { return folder_.path_of("control"); }
    std::size_t count_connections() {
        return loop_.call([&](EventLoop&) { return server_->count_connections(); });
    }

    TempFolder folder_;
    Fd bell_{[] { return open_file("/dev/null", OpenMode::read).value(); }()};
    LoopThread loop_;
    std::optional<Server> server_;
};

TEST_F(ClientAndServer, SpeakWithEachOther) {
    start();
    auto client = Client::connect(path());
    ASSERT_TRUE(client);
    for (int turn = 0; turn < 200; ++turn) {
        const std::string arguments = fmt::format(R"({{"turn":{}}})", turn);
        const auto answer = client->call("echo", arguments);
        ASSERT_TRUE(answer) << answer.error().message();
        EXPECT_EQ(answer->result, arguments);
    }
}

TEST_F(ClientAndServer, PassDescriptors) {
    start();
    Client client = Client::connect(path()).value();
    const FileFacts ours = file_facts(bell_).value();
    for (int turn = 0; turn < 20; ++turn) {
        const auto answer = client.call("bell", "{}");
        ASSERT_TRUE(answer);
        ASSERT_THAT(answer->fds, SizeIs(1));
        EXPECT_EQ(file_facts(answer->fds[0])->inode, ours.inode);
    }
}

TEST_F(ClientAndServer, SpeakInSeveralThreadsAtATime) {
    start();
    std::vector<std::thread> threads;
    std::atomic<int> count_good{0};
    for (int number = 0; number < 4; ++number)
        threads.emplace_back([&, number] {
            auto client = Client::connect(path());
            for (int turn = 0; client && turn < 100; ++turn) {
                const std::string arguments = fmt::format(R"({{"from":{},"turn":{}}})", number, turn);
                const auto answer = client->call("echo", arguments);
                if (answer && answer->result == arguments) ++count_good;
            }
        });
    for (std::thread& thread : threads) thread.join();

    EXPECT_EQ(count_good, 400);
    EXPECT_TRUE(eventually([&] { return count_connections() == 0; }));
}

TEST_F(ClientAndServer, AnIdleClientIsToldAtItsNextCall) {
    start(200);
    Client client = Client::connect(path()).value();
    ASSERT_TRUE(client.call("echo", "{}"));
    ASSERT_TRUE(eventually([&] { return count_connections() == 0; }));
    EXPECT_EQ(code_of(client.call("echo", "{}")), Errc::unavailable);
}

}  // namespace
}  // namespace guestmem::control
