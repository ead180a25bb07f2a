// SPDX-License-Identifier: Apache-2.0
#include "guestmem/control/server.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/lingering_socket.hpp"
#include "guestmem/sys/testing/resources.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"
#include "guestmem/sys/undertaker.hpp"

namespace guestmem::control {
namespace {

using testing::for_each_fault;
using ::testing::IsEmpty;
using testing::Resources;
using testing::TempFolder;

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span{text}); }

std::string line_of(std::uint64_t id, const std::string& call, const std::string& arguments = "{}") {
    return encode_request({.id = id, .call = call, .arguments = arguments});
}

/// "echo" answers with its arguments, "who" with the caller, "fds" with two eventfds, "long" and "too_long" with an
/// answer at the limit and one past it, all else with an error.
Result<Outcome> answer(const PeerCredentials& caller, const Request& request) {
    Outcome outcome;
    if (request.call == "echo") {
        outcome.result = request.arguments;
    } else if (request.call == "who") {
        outcome.result = fmt::format(R"({{"uid":{},"pid":{}}})", caller.uid, caller.pid);
    } else if (request.call == "fds") {
        for (int i = 0; i < 2; ++i) outcome.fds.push_back(GM_TRY(open_file("/dev/null", OpenMode::read)));
    } else if (request.call == "long" || request.call == "too_long") {
        const Answer empty{.id = request.id, .result = R"({"pad":""})", .error = {}, .count_fds = 0};
        const std::size_t rest = max_answer_bytes + 1 - encode_answer(empty).size();
        outcome.result = R"({"pad":")" + std::string(rest + (request.call == "long" ? 0 : 1), 'x') + R"("})";
    } else {
        return Error{Errc::not_found, ENOENT, "no call '" + request.call + "'"};
    }
    return outcome;
}

/// One end of a connection that never waits: the loop runs in the same thread.
class Caller {
public:
    explicit Caller(const std::string& path) : stream_(UnixStream::connect(path).value()) {
        EXPECT_TRUE(stream_.set_nonblocking());
    }

    /// How much of the text went out.
    std::size_t send(std::string_view text, std::span<const FdView> fds = {}) {
        const auto outcome = stream_.send(bytes_of(text), fds);
        return outcome ? outcome->count_bytes : 0;
    }
    /// Takes what has arrived.
    void look() {
        std::array<std::byte, 16 * 1024> buffer;
        for (;;) {
            auto received = stream_.receive(buffer);
            if (received && !*received) return;
            is_closed_ = !received || (*received)->count_bytes == 0;
            if (is_closed_) return;
            text_.append(reinterpret_cast<const char*>(buffer.data()), (*received)->count_bytes);
            std::ranges::move((*received)->fds, std::back_inserter(fds_));
        }
    }
    /// The next whole line, if it has arrived.
    std::optional<Answer> next() {
        look();
        const std::size_t newline = text_.find('\n');
        if (newline == std::string::npos) return std::nullopt;
        auto decoded = decode_answer(std::string_view{text_}.substr(0, newline));
        text_.erase(0, newline + 1);
        return decoded.value();
    }
    bool is_closed() {
        look();
        return is_closed_;
    }
    std::vector<Fd>& fds() { return fds_; }
    UnixStream& stream() { return stream_; }

private:
    UnixStream stream_;
    std::string text_;
    std::vector<Fd> fds_;
    bool is_closed_ = false;
};

class ControlServer : public ::testing::Test {
protected:
    /// A loop keeps the timer descriptor of its first timer: it is there before anything is counted.
    ControlServer() {
        EXPECT_TRUE(loop_.add_timer(0, [] {}));
    }

    void start(std::uint64_t idle_timeout_ms = 60'000) {
        server_.emplace(Server::create(loop_, options(idle_timeout_ms),
                                       [this](const PeerCredentials& caller, const Request& request) {
                                           ++count_calls_;
                                           return answer(caller, request);
                                       })
                            .value());
    }
    [[nodiscard]] ServerOptions options(std::uint64_t idle_timeout_ms = 60'000) const {
        return {.socket = {.path = path(), .mode = 0666}, .idle_timeout_ms = idle_timeout_ms};
    }
    [[nodiscard]] std::string path() const { return folder_.path_of("control"); }

    /// Runs the loop until it is so, for a bounded time.
    template <typename Predicate>
    [[nodiscard]] bool becomes(Predicate&& is_so) {
        const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds{10};
        while (!is_so()) {
            if (std::chrono::steady_clock::now() > deadline || !loop_.run_once(10)) return false;
        }
        return true;
    }
    std::optional<Answer> answer_for(Caller& caller) {
        std::optional<Answer> found;
        EXPECT_TRUE(becomes([&] { return (found = caller.next()).has_value() || caller.is_closed(); }));
        return found;
    }
    std::optional<Answer> ask(Caller& caller, const std::string& line, std::span<const FdView> fds = {}) {
        EXPECT_EQ(caller.send(line, fds), line.size());
        return answer_for(caller);
    }
    /// As many callers as the server lets in, at most `most`.
    std::size_t count_let_in(std::list<Caller>& callers, std::size_t most) {
        for (std::size_t i = 0; i < most; ++i) callers.emplace_back(path());
        for (Caller& caller : callers) caller.send(line_of(1, "echo"));
        std::size_t count = 0;
        for (Caller& caller : callers)
            if (const auto answer = answer_for(caller); answer && !answer->error) ++count;
        return count;
    }

    TempFolder folder_;
    EventLoop loop_ = EventLoop::create().value();
    std::optional<Server> server_;
    std::size_t count_calls_ = 0;
};

/// Another user to the kernel, for this thread and as long as it lives; only root can become one.
class AsUser {
public:
    explicit AsUser(std::uint32_t id) { GM_CHECK(::syscall(SYS_setresuid, -1, id, -1) == 0); }
    AsUser(const AsUser&) = delete;
    AsUser& operator=(const AsUser&) = delete;
    ~AsUser() { GM_CHECK(::syscall(SYS_setresuid, -1, 0, -1) == 0); }
};

TEST_F(ControlServer, AnswersWithTheIdOfTheRequest) {
    start();
    Caller caller{path()};

    const auto found = ask(caller, line_of(77, "echo", R"({"x":[1,2]})"));

    ASSERT_TRUE(found);
    EXPECT_EQ(found->id, 77U);
    EXPECT_EQ(found->result, R"({"x":[1,2]})");
    EXPECT_EQ(server_->count_connections(), 1U);
}

TEST_F(ControlServer, TellsTheHandlerWhoCalls) {
    start();
    Caller caller{path()};
    EXPECT_EQ(ask(caller, line_of(1, "who"))->result,
              fmt::format(R"({{"pid":{},"uid":{}}})", own_process(), own_user()));
}

TEST_F(ControlServer, TellsTheHandlerTheCallersControlGroupWhereItIsWanted) {
    ServerOptions wanted = options();
    for (const bool is_wanted : {false, true}) {
        wanted.wants_cgroup = is_wanted;
        std::optional<std::string> cgroup;
        const Server server = Server::create(loop_, wanted, [&](const PeerCredentials& who, const Request&) {
                                  cgroup = who.cgroup;
                                  return Result<Outcome>{Outcome{}};
                              }).value();
        Caller caller{path()};
        ASSERT_TRUE(ask(caller, line_of(1, "x")));
        EXPECT_EQ(cgroup.has_value(), is_wanted);
    }
}

TEST_F(ControlServer, DropsWhoIsConnectedAndServesWhoComesAfter) {
    start();
    Caller before{path()};
    ASSERT_TRUE(ask(before, line_of(1, "echo")));
    server_->drop_connections();
    EXPECT_TRUE(becomes([&] { return !before.next() && before.is_closed(); }));
    EXPECT_EQ(server_->count_connections(), 0U);
    Caller after{path()};
    EXPECT_TRUE(ask(after, line_of(1, "echo")));
}

TEST_F(ControlServer, ADropInTheMidstOfARequestSendsItsAnswerFirst) {
    server_.emplace(Server::create(loop_, options(), [this](const PeerCredentials&, const Request&) {
                        server_->drop_connections();
                        return Result<Outcome>{Outcome{}};
                    }).value());
    Caller other{path()};
    Caller asking{path()};
    EXPECT_TRUE(becomes([&] { return server_->count_connections() == 2; }));
    EXPECT_TRUE(ask(asking, line_of(1, "drop")));
    EXPECT_TRUE(becomes([&] { return !asking.next() && asking.is_closed(); }));
    EXPECT_TRUE(becomes([&] { return !other.next() && other.is_closed(); }));
}

TEST_F(ControlServer, WhatOneUserSendsToCloseSlowlyIsNoLimitForAnother) {
    if (own_user() != 0) GTEST_SKIP() << "only root can become another user";
    start();
    std::filesystem::permissions(folder_.path(), std::filesystem::perms{0755});
    std::list<guestmem::testing::LingeringSocket> slow;
    std::list<Caller> hostile;
    const auto come = [&](std::uint32_t uid) {
        const AsUser user{uid};
        hostile.emplace_back(path());
    };
    const std::array<std::byte, 1> byte{};
    for (std::size_t i = 0; i < max_burials_of_party; ++i) {
        come(65'534);
        EXPECT_TRUE(becomes([&] { return server_->count_connections() == 1; }));
        slow.emplace_back().give_to(hostile.back().stream(), byte);
        EXPECT_TRUE(becomes([&] { return server_->count_connections() == 0; }));
    }
    come(65'534);
    EXPECT_EQ(answer_for(hostile.back())->error->os_error(), EUSERS);
    come(65'533);
    EXPECT_TRUE(ask(hostile.back(), line_of(1, "echo"))) << "another user";
    slow.clear();
    EXPECT_TRUE(becomes([&] {
        come(65'534);
        hostile.back().send(line_of(1, "echo"));
        const auto served = answer_for(hostile.back());
        return served && !served->error;
    }));
}

TEST_F(ControlServer, AnErrorOfTheHandlerLeavesTheConnection) {
    start();
    Caller caller{path()};

    const auto refused = ask(caller, line_of(5, "sing"));
    const auto after = ask(caller, line_of(6, "echo"));

    ASSERT_TRUE(refused && refused->error);
    EXPECT_EQ(refused->id, 5U);
    EXPECT_EQ(refused->error->code(), Errc::not_found);
    EXPECT_EQ(refused->error->os_error(), ENOENT);
    ASSERT_TRUE(after);
    EXPECT_EQ(after->id, 6U);
}

TEST_F(ControlServer, PutsARequestTogetherThatArrivesByteByByte) {
    start();
    Caller caller{path()};
    const std::string line = line_of(9, "echo", R"({"x":1})");

    for (std::size_t i = 0; i < line.size(); ++i) {
        EXPECT_EQ(count_calls_, 0U);
        ASSERT_EQ(caller.send(line.substr(i, 1)), 1U);
        ASSERT_TRUE(loop_.run_once(10));
        ASSERT_TRUE(loop_.run_once(0));
    }

    EXPECT_EQ(answer_for(caller)->id, 9U);
}

TEST_F(ControlServer, AnswersManyPipelinedRequestsInTheirOrder) {
    start();
    Caller caller{path()};
    constexpr std::uint64_t count = 3'000;
    std::string lines;
    for (std::uint64_t id = 1; id <= count; ++id) lines += line_of(id, "echo", R"({"text":"some letters"})");
    std::size_t sent = 0;
    std::uint64_t last_id = 0;

    const bool is_done = becomes([&] {
        sent += sent < lines.size() ? caller.send(std::string_view{lines}.substr(sent)) : 0;
        while (const auto found = caller.next()) {
            EXPECT_EQ(found->id, last_id + 1);
            last_id = found->id;
        }
        return last_id == count || caller.is_closed();
    });

    EXPECT_TRUE(is_done);
    EXPECT_EQ(last_id, count);
}

TEST_F(ControlServer, AnswersWhatWasAskedBeforeTheCallerClosedItsHalf) {
    start();
    Caller caller{path()};
    caller.send(line_of(1, "echo") + line_of(2, "echo"));
    ASSERT_EQ(::shutdown(caller.stream().view().number(), SHUT_WR), 0);

    EXPECT_EQ(answer_for(caller)->id, 1U);
    EXPECT_EQ(answer_for(caller)->id, 2U);
    EXPECT_TRUE(becomes([&] { return server_->count_connections() == 0; }));
}

TEST_F(ControlServer, ALineThatCannotBeReadIsAnsweredAndEndsTheConnection) {
    start();
    for (const std::string_view line :
         {"\n", "hello\n", "{\"v\":2,\"id\":1,\"call\":\"a\"}\n", "{}\n", "\xff\n"}) {
        Caller caller{path()};
        const auto found = ask(caller, std::string{line} + line_of(1, "echo"));
        ASSERT_TRUE(found && found->error) << line;
        EXPECT_EQ(found->id, 0U) << line;
        EXPECT_TRUE(becomes([&] { return caller.is_closed(); })) << line;
        EXPECT_EQ(caller.next(), std::nullopt) << line;
    }
    EXPECT_EQ(count_calls_, 0U);
}

TEST_F(ControlServer, TakesALineOfTheLimitAndRefusesOnePast) {
    start();
    const std::size_t empty = line_of(1, "echo", R"({"pad":""})").size() - 1;
    const auto line = [&](std::size_t count_bytes) {
        return line_of(1, "echo", R"({"pad":")" + std::string(count_bytes - empty, 'x') + R"("})");
    };
    Caller good{path()};
    Caller bad{path()};

    const auto taken = ask(good, line(max_request_bytes));
    const auto refused = ask(bad, line(max_request_bytes + 1));

    ASSERT_TRUE(taken && taken->result);
    ASSERT_TRUE(refused && refused->error);
    EXPECT_EQ(refused->error->code(), Errc::out_of_range);
    EXPECT_TRUE(becomes([&] { return bad.is_closed(); }));
}

TEST_F(ControlServer, ALineWithoutEndIsCutAtTheLimit) {
    start();
    Caller caller{path()};
    const std::string chunk(8'192, ' ');
    std::optional<Answer> found;

    // The send fails once the server has closed; what it said before arrives all the same.
    const bool is_answered = becomes([&] {
        caller.send(chunk);
        return (found = caller.next()).has_value();
    });

    ASSERT_TRUE(is_answered);
    EXPECT_EQ(found->error->code(), Errc::out_of_range);
    EXPECT_TRUE(becomes([&] { return caller.is_closed(); }));
    EXPECT_EQ(server_->count_connections(), 0U);
}

TEST_F(ControlServer, SendsAnAnswerOfTheLimitAndAnErrorInPlaceOfOnePast) {
    start();
    Caller caller{path()};

    const auto longest = ask(caller, line_of(1, "long"));
    const auto refused = ask(caller, line_of(2, "too_long"));

    ASSERT_TRUE(longest && longest->result);
    ASSERT_TRUE(refused && refused->error);
    EXPECT_EQ(refused->id, 2U);
    EXPECT_EQ(refused->error->code(), Errc::out_of_range);
    EXPECT_TRUE(ask(caller, line_of(3, "echo")));
}

TEST_F(ControlServer, HandsDescriptorsOut) {
    start();
    Caller caller{path()};

    const auto found = ask(caller, line_of(1, "fds"));

    ASSERT_TRUE(found);
    EXPECT_EQ(found->count_fds, 2U);
    ASSERT_EQ(caller.fds().size(), 2U);
    EXPECT_TRUE(file_facts(caller.fds()[1]));
}

TEST_F(ControlServer, ClosesACallerThatSendsDescriptorsAndTakesNone) {
    start();
    const EventFd bell = EventFd::create().value();
    const std::vector<FdView> fds(max_fds_per_message, bell.view());
    const Resources before = Resources::look();

    for (std::uint64_t id = 1; id < 5; ++id) {
        Caller caller{path()};
        EXPECT_FALSE(ask(caller, line_of(id, "echo"), fds));
        EXPECT_TRUE(becomes([&] { return server_->count_connections() == 0; }));
    }

    EXPECT_TRUE(becomes([&] { return Resources::look() == before; }));
    Caller next{path()};
    EXPECT_TRUE(ask(next, line_of(1, "echo")));
}

TEST_F(ControlServer, TooManyDescriptorsInFlightAreSaid) {
    start();
    Caller caller{path()};
    caller.send(line_of(4, "fds"));
    std::optional<Answer> found;
    {
        const FaultInjector injector{0, {.only = SysCall::sendmsg, .os_error = ETOOMANYREFS}};
        found = answer_for(caller);
    }

    ASSERT_TRUE(found && found->error);
    EXPECT_EQ(found->id, 4U);
    EXPECT_EQ(found->error->code(), Errc::exhausted);
    EXPECT_THAT(caller.fds(), IsEmpty());
    EXPECT_EQ(ask(caller, line_of(5, "fds"))->count_fds, 2U);
}

TEST_F(ControlServer, ClosesACallerThatDoesNothing) {
    start(30);
    Caller idle{path()};
    EXPECT_TRUE(becomes([&] { return idle.is_closed(); }));
    EXPECT_EQ(server_->count_connections(), 0U);
}

TEST_F(ControlServer, KeepsACallerThatAsksNowAndThen) {
    start(800);
    Caller caller{path()};
    const auto begin = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - begin < std::chrono::milliseconds{1'300}) {
        ASSERT_TRUE(ask(caller, line_of(1, "echo")));
        ASSERT_TRUE(loop_.run_once(20));
    }
    EXPECT_FALSE(caller.is_closed());
}

/// Asks until the server takes no more: its answers are not read.
void ask_until_full(EventLoop& loop, Caller& caller) {
    std::string lines;
    for (std::uint64_t id = 1; id <= 500; ++id)
        lines += line_of(id, "echo", R"({"x":"0123456789012345678901"})");
    std::size_t at = 0;
    int count_refused = 0;
    while (count_refused < 20) {
        const std::size_t count = caller.send(std::string_view{lines}.substr(at));
        at = (at + count) % lines.size();
        count_refused = count == 0 ? count_refused + 1 : 0;
        ASSERT_TRUE(loop.run_once(0));
    }
}

TEST_F(ControlServer, ACallerThatNeverReadsIsNotReadOnAndHoldsNobodyUp) {
    start(1'000);
    Caller mute{path()};
    Caller other{path()};

    ask_until_full(loop_, mute);
    // One request a turn: what is read already is answered until the answers have no room.
    for (int turn = 0; turn < 2000; ++turn) ASSERT_TRUE(loop_.run_once(0));
    const std::size_t count_before = count_calls_;

    EXPECT_TRUE(ask(other, line_of(1, "echo")));
    EXPECT_EQ(count_calls_, count_before + 1);
    EXPECT_TRUE(becomes([&] {
        other.send(line_of(2, "echo"));
        other.look();
        return server_->count_connections() == 1;
    })) << "a caller that reads nothing is idle";
    EXPECT_FALSE(other.is_closed());
}

TEST_F(ControlServer, ACallerThatNeverReadsAndHangsUpIsGoneAtOnce) {
    start();
    Caller mute{path()};
    ask_until_full(loop_, mute);
    ASSERT_EQ(server_->count_connections(), 1U);

    // Its end stays open, so that the server's own send buffer stays full.
    mute.stream().shut_down();
    for (int turn = 0; turn < 20; ++turn) ASSERT_TRUE(loop_.run_once(0));

    EXPECT_EQ(server_->count_connections(), 0U);
}

TEST_F(ControlServer, LetsInAsManyCallersOfOneUserAsTheLimitAndNotOneMore) {
    start();
    std::list<Caller> callers;
    std::size_t count = 0;
    if (own_user() == 0) {
        std::filesystem::permissions(folder_.path(), std::filesystem::perms{0755});
        const AsUser nobody{65'534};
        for (std::size_t i = 0; i < max_connections_per_user + 3; ++i) callers.emplace_back(path());
    }
    count = count_let_in(callers, callers.empty() ? max_connections_per_user + 3 : 0);

    EXPECT_EQ(count, max_connections_per_user);
    callers.pop_front();
    EXPECT_TRUE(becomes([&] { return server_->count_connections() == max_connections_per_user - 1; }));
}

TEST_F(ControlServer, LetsRootInUpToTheLimitOfAll) {
    if (own_user() != 0) GTEST_SKIP() << "only root has more than the limit of one user";
    start();
    std::list<Caller> callers;
    EXPECT_EQ(count_let_in(callers, max_connections + 2), max_connections);
}

TEST_F(ControlServer, IsNotDeafAfterItWasOutOfDescriptors) {
    start();
    Caller caller{path()};
    {
        const FaultInjector injector{0, {.only = SysCall::accept}};
        while (!injector.has_fired()) ASSERT_TRUE(loop_.run_once(10));
    }
    EXPECT_TRUE(ask(caller, line_of(1, "echo")));
}

TEST_F(ControlServer, IsNotDeafWhenItsTimerFailedToo) {
    start();
    {
        const FaultInjector injector{0, {.only = SysCall::event_loop}};
        ASSERT_TRUE(becomes([&] { return injector.has_fired(); }));  // the housekeeping sets its timer again
    }
    Caller caller{path()};
    {
        const FaultInjector injector{0, {.only = SysCall::accept}};
        while (!injector.has_fired()) ASSERT_TRUE(loop_.run_once(10));
    }
    EXPECT_TRUE(ask(caller, line_of(1, "echo")));
}

TEST_F(ControlServer, LeavesNothingWhenItGoes) {
    const Resources before = Resources::look();
    {
        start();
        Caller caller{path()};
        ASSERT_TRUE(ask(caller, line_of(1, "echo")));
        server_.reset();
        EXPECT_TRUE(caller.is_closed());
    }
    EXPECT_EQ(Resources::look(), before);
    EXPECT_THAT(folder_.entries(), IsEmpty());
}

TEST_F(ControlServer, WhateverFailsWhileItIsMadeNothingIsLeft) {
    const auto count = for_each_fault([&] { return Server::create(loop_, options(), answer); },
                                      [&] { EXPECT_THAT(folder_.entries(), IsEmpty()); });
    EXPECT_GE(count, 10U);
}

TEST_F(ControlServer, WhateverFailsInACallNothingIsLeftAndTheNextCallWorks) {
    start();
    const auto call = [&]() -> Result<void> {
        Result<void> status = Error{Errc::io, "no answer"};
        {
            const UnixStream stream = GM_TRY(UnixStream::connect(path()));
            GM_TRY(stream.set_nonblocking());
            GM_TRY(stream.send(bytes_of(line_of(1, "fds"))));
            std::array<std::byte, 1024> buffer{};
            for (int turn = 0; turn < 20 && !status; ++turn) {
                GM_TRY(loop_.run_once(0));
                const auto received = stream.receive(buffer);
                if (received && *received && (*received)->fds.size() == 2) status = Result<void>{};
            }
        }
        for (int turn = 0; turn < 50 && server_->count_connections() != 0; ++turn) GM_TRY(loop_.run_once(0));
        return status;
    };
    const auto count = for_each_fault({.faults = testing::FaultsAre::survivable}, call, [&] {
        {
            Caller next{path()};
            EXPECT_TRUE(ask(next, line_of(2, "echo")));
        }
        EXPECT_TRUE(becomes([&] { return server_->count_connections() == 0; }));
    });
    EXPECT_GE(count, 10U);
}

}  // namespace
}  // namespace guestmem::control
