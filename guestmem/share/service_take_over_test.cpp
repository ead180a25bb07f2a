// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "guestmem/control/wire.hpp"
#include "guestmem/share/calls.hpp"
#include "guestmem/share/ivshmem/client.hpp"
#include "guestmem/share/keeper/keeper_link.hpp"
#include "guestmem/share/presence.hpp"
#include "guestmem/share/service.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem::share {
namespace {

using guestmem::testing::TempFolder;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int patience_ms = 10'000;

class Lines final : public Log {
public:
    void write(LogLevel, std::string_view text) override { lines_ += std::string{text} + "\n"; }
    [[nodiscard]] const std::string& text() const { return lines_; }

private:
    std::string lines_;
};

ServiceConfig config_in(const TempFolder& folder, IdPolicy ids) {
    QuickOptions options;
    options.share = {
        .name = "m", .size_bytes = 8192, .vectors = 2, .slots = 3, .ids = ids, .huge_page_bytes = 0};
    options.socket = folder.path_of("s");
    ServiceConfig made = quick_config(options).value();
    VmConfig vm;
    vm.name = "maker";
    vm.socket = ListenOptions{.path = folder.path_of("maker")};
    made.vms.push_back(vm);
    return made;
}

KeeperJoinOptions keeper_in(const TempFolder& folder) { return {.path = folder.path_of("k")}; }

/// A service in a process of its own, which is killed before its nth system call from go() on.
class Doomed {
public:
    Doomed(const TempFolder& folder, ServiceConfig config, ServiceConfig next, std::uint64_t nth) {
        std::array<int, 2> ends{};
        if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
            ADD_FAILURE() << "socketpair";
        pid_ = ::fork();
        if (pid_ == 0) {
            ::close(ends[0]);
            run(folder, std::move(config), std::move(next), nth, ends[1]);
            ::_exit(0);
        }
        ::close(ends[1]);
        wire_ = Fd{ends[0]};
        char ready = 0;
        EXPECT_EQ(::read(wire_.view().number(), &ready, 1), 1) << "the first instance did not start";
    }
    Doomed(const Doomed&) = delete;
    Doomed& operator=(const Doomed&) = delete;
    ~Doomed() { kill(); }

    void go() const { EXPECT_EQ(::write(wire_.view().number(), "g", 1), 1); }
    [[nodiscard]] bool is_dead() {
        if (!is_reaped_) is_reaped_ = ::waitpid(pid_, nullptr, WNOHANG) == pid_;
        return is_reaped_;
    }
    void kill() {
        if (is_reaped_) return;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
        is_reaped_ = true;
    }

private:
    static void run(const TempFolder& folder, ServiceConfig config, ServiceConfig next, std::uint64_t nth,
                    int wire) {
        Lines log;
        auto loop = EventLoop::create();
        auto inheritance = join_keeper(keeper_in(folder));
        if (!loop || !inheritance) ::_exit(3);
        ServiceOptions options;
        options.inheritance = std::move(*inheritance);
        options.reread = [next] { return Result<ServiceConfig>{next}; };
        auto service = Service::create(*loop, log, std::move(config), std::move(options));
        if (!service || ::write(wire, "r", 1) != 1) ::_exit(4);
        std::optional<FaultInjector> injector;
        FaultInjector::Options deadly;
        deadly.is_deadly = true;
        const FdView view{wire};
        const auto heard = loop->add_io(view, IoEvents::readable, [&](IoEvents) {
            char word = 0;
            // The parent that ends ends its children.
            if (::read(wire, &word, 1) != 1) ::_exit(0);
            injector.emplace(nth, deadly);
        });
        // Left by a signal, or by the parent's end.
        static_cast<void>(loop->run().has_value());
    }

    pid_t pid_ = -1;
    bool is_reaped_ = false;
    Fd wire_;
};

/// The instance that takes over, in the test's own thread.
class TakeOver : public ::testing::Test {
protected:
    void take_over(IdPolicy ids) { take_over(config_in(folder_, ids)); }
    void take_over(ServiceConfig config) {
        auto inheritance = join_keeper(keeper_in(folder_));
        ASSERT_TRUE(inheritance) << inheritance.error().message();
        ServiceOptions options;
        options.inheritance = std::move(*inheritance);
        auto made = Service::create(loop_, log_, std::move(config), std::move(options));
        ASSERT_TRUE(made) << made.error().message();
        service_.emplace(std::move(*made));
    }
    void turn(int rounds = 20) {
        for (int i = 0; i < rounds; ++i) ASSERT_TRUE(loop_.run_once(0));
    }
    template <typename Predicate>
    bool turn_until(Predicate is_so) {
        for (int i = 0; i < patience_ms / 10 && !is_so(); ++i)
            if (const auto turned = loop_.run_once(10); !turned) {
                ADD_FAILURE() << turned.error().message();
                return false;
            }
        return is_so();
    }
    [[nodiscard]] static bool is_whole(const Client& client) {
        const auto* own = client.table().own_id() ? client.table().find(*client.table().own_id()) : nullptr;
        return own != nullptr && own->size() == 2;
    }
    /// Goes on with a handshake: whole, or closed.
    Result<void> complete(Client& client) {
        for (int i = 0; i < patience_ms / 10; ++i) {
            if (is_whole(client)) return {};
            if (!GM_TRY(client.receive(0))) GM_TRY(loop_.run_once(10));
        }
        return Error{Errc::timed_out, "the handshake does not end"};
    }
    Result<Client> join(const std::string& door) {
        Client client = GM_TRY(Client::connect(folder_.path_of(door)));
        GM_TRY(complete(client));
        return client;
    }
    /// With a service in another process.
    Result<Client> join_alone(const std::string& door) {
        Client client = GM_TRY(Client::connect(folder_.path_of(door)));
        GM_TRY(client.join(2, patience_ms));
        return client;
    }
    /// A client may have read its last message before the service, in another process, has noted it; an answer comes
    /// after that.
    void settle() {
        const UnixStream tool = UnixStream::connect(folder_.path_of("s.control")).value();
        const std::string line = control::encode_request({.id = 1, .call = "share.list"});
        EXPECT_TRUE(tool.send(std::as_bytes(std::span{line})));
        EXPECT_TRUE(tool.wait_readable(patience_ms).value());
    }
    ShareStatus status_of(const std::string& share) {
        const UnixStream tool = UnixStream::connect(folder_.path_of("s.control")).value();
        const std::string line =
            control::encode_request({.id = 1, .call = "share.stat", .arguments = to_json(NamedCall{share})});
        EXPECT_TRUE(tool.send(std::as_bytes(std::span{line})));
        std::string said(64 * 1024, ' ');
        std::optional<Received> received;
        EXPECT_TRUE(turn_until([&] {
            if (!received && tool.wait_readable(0).value())
                received = tool.receive(std::as_writable_bytes(std::span{said})).value();
            return received.has_value();
        }));
        said.resize(received ? received->count_bytes : 0);
        const auto answer = control::decode_answer(said).value();
        EXPECT_TRUE(answer.result) << said;
        return parse_share_status(answer.result.value_or("{}")).value();
    }
    /// What the keeper has when the service has retired.
    std::vector<KeptKey> what_is_kept() {
        EXPECT_TRUE(service_->retire());
        service_.reset();
        auto inheritance = join_keeper(keeper_in(folder_));
        EXPECT_TRUE(inheritance);
        std::vector<KeptKey> keys;
        for (const KeptFd& kept : inheritance->kept) keys.push_back(kept.key);
        EXPECT_TRUE(inheritance->keeper->end());
        std::ranges::sort(keys);
        return keys;
    }
    static std::map<KeptKind, std::size_t> counted(const std::vector<KeptKey>& keys) {
        std::map<KeptKind, std::size_t> counts;
        for (const KeptKey& key : keys) ++counts[key.kind];
        return counts;
    }

    TempFolder folder_;
    Lines log_;
    EventLoop loop_ = EventLoop::create().value();
    std::optional<Service> service_;
};

/// As long as there is a system call to be killed before; `round` says whether the service lived through it.
void for_each_kill(const std::function<bool(std::uint64_t nth)>& round) {
    constexpr std::uint64_t most_rounds = 200;
    std::uint64_t count_survived = 0;
    std::uint64_t nth = 0;
    for (; nth < most_rounds && count_survived < 3; ++nth) {
        SCOPED_TRACE(::testing::Message() << "killed before call " << nth);
        count_survived = round(nth) ? count_survived + 1 : 0;
        if (::testing::Test::HasFailure()) return;
    }
    EXPECT_GT(nth, 8U) << "some calls were there to be killed before";
}

TEST_F(TakeOver, KeepsMemoryIdsAndDoorbellsAndTheOldPeersNoticeNothing) {
    std::optional<Client> old;
    {
        Doomed first{folder_, config_in(folder_, IdPolicy::stable), {}, 0};
        old.emplace(join_alone("s.1").value());
        const Mapping memory = old->map(MapAccess::read_write).value();
        memory.bytes()[100] = std::byte{42};
        settle();
        first.kill();
    }
    EXPECT_TRUE(old->ring(2, 1)) << "a kick for a slot that nobody holds";
    take_over(IdPolicy::stable);
    const auto newcomer = join("s.2");
    ASSERT_TRUE(newcomer) << newcomer.error().message();
    EXPECT_EQ(newcomer->wait(1, 0).value(), 1U) << "it waited through the kill";
    EXPECT_EQ(newcomer->map(MapAccess::read_only)->bytes()[100], std::byte{42});
    EXPECT_TRUE(newcomer->ring(1, 0));
    EXPECT_EQ(old->wait(0, 0).value(), 1U);
    EXPECT_FALSE(old->receive(0).value()) << "not a byte more";
    EXPECT_EQ(join("s.1").error().os_error(), EBUSY);
    const ShareStatus status = status_of("m");
    ASSERT_EQ(status.peers.size(), 2U);
    EXPECT_EQ(status.peers[0].pid, ::getpid());
    EXPECT_TRUE(status.peers[0].is_joined);
    EXPECT_THAT(log_.text(), HasSubstr("instance 2: 1 shares and 1 of 1 clients are taken over"));
}

TEST_F(TakeOver, SeesWhoHasLeftMeanwhileAndClearsWhatTheLastOneLeft) {
    {
        Doomed first{folder_, config_in(folder_, IdPolicy::stable), {}, 0};
        const Client old = join_alone("s.1").value();
        const Mapping memory = old.map(MapAccess::read_write).value();
        memory.bytes()[100] = std::byte{42};
        first.kill();
    }
    take_over(IdPolicy::stable);
    ASSERT_TRUE(turn_until([&] { return service_->counts().sessions == 0; }));
    const auto next = join("s.1");
    ASSERT_TRUE(next) << next.error().message();
    EXPECT_EQ(next->map(MapAccess::read_only)->bytes()[100], std::byte{0});
}

TEST_F(TakeOver, AKillAtAnySystemCallOfAJoinLosesAtMostThatJoin) {
    for_each_kill([&](std::uint64_t nth) {
        Doomed first{folder_, config_in(folder_, IdPolicy::stable), {}, nth};
        std::optional<Client> old{join_alone("s.2").value()};
        const Mapping memory = old->map(MapAccess::read_write).value();
        memory.bytes()[7] = std::byte{9};
        first.go();
        std::optional<Client> late;
        if (auto connected = Client::connect(folder_.path_of("s.0"))) late.emplace(std::move(*connected));
        EXPECT_TRUE(late) << "the socket outlives the service";
        while (late && !is_whole(*late) && !first.is_dead())
            if (!late->receive(20)) break;
        const bool has_lived = !first.is_dead() && is_whole(*late);
        first.kill();

        log_ = {};
        take_over(IdPolicy::stable);
        const auto completed = complete(*late);
        if (!completed) {
            EXPECT_EQ(completed.error().code(), Errc::unavailable) << completed.error().message();
            EXPECT_THAT(log_.text(), AnyOf(HasSubstr("cannot be taken over"), Not(HasSubstr("id 0"))));
            late.emplace(join("s.0").value());
        }
        EXPECT_EQ(late->table().own_id(), 0U);
        EXPECT_EQ(late->map(MapAccess::read_only)->bytes()[7], std::byte{9});
        EXPECT_TRUE(late->ring(2, 1));
        EXPECT_EQ(old->wait(1, 0).value(), 1U);
        EXPECT_TRUE(old->ring(0, 0));
        EXPECT_EQ(late->wait(0, 0).value(), 1U);
        EXPECT_FALSE(old->receive(0).value());
        old.reset();
        late.reset();
        EXPECT_TRUE(turn_until([&] { return service_->counts().sessions == 0; }));
        const auto kept = counted(what_is_kept());
        // 4 doors, the common control socket and a VM's.
        EXPECT_EQ(kept.at(KeptKind::listener), 6U);
        EXPECT_EQ(kept.at(KeptKind::doorbell), 6U);
        EXPECT_EQ(kept.count(KeptKind::connection), 0U);
        return has_lived;
    });
}

TEST_F(TakeOver, AKillAtAnySystemCallOfALeaveLeavesNothingBehind) {
    for (const IdPolicy ids : {IdPolicy::stable, IdPolicy::classic}) {
        for_each_kill([&](std::uint64_t nth) {
            Doomed first{folder_, config_in(folder_, ids), {}, nth};
            std::optional<Client> old{join_alone("s").value()};
            std::optional<Client> leaver{join_alone("s").value()};
            const std::uint32_t id = *leaver->table().own_id();
            std::uint64_t count_gone = 0;
            const auto hear = [&](int wait_ms) {
                const auto notice = old->receive(wait_ms);
                if (!notice || !*notice) return notice.has_value();
                if ((*notice)->kind == NoticeKind::gone) {
                    EXPECT_EQ((*notice)->id, id);
                    ++count_gone;
                }
                return true;
            };
            first.go();
            leaver.reset();
            const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds{150};
            while (!first.is_dead() && std::chrono::steady_clock::now() < end) hear(10);
            const bool has_lived = !first.is_dead();
            first.kill();

            take_over(ids);
            EXPECT_TRUE(turn_until([&] { return service_->counts().sessions <= 1; }));
            turn();
            bool is_connected = true;
            for (int i = 0; i < 20 && is_connected; ++i) is_connected = hear(0);
            // Told once where ids are classic, or closed because nobody can say; never told twice.
            if (ids == IdPolicy::classic) {
                EXPECT_LE(count_gone, 1U);
                EXPECT_TRUE(count_gone == 1 || !is_connected);
            } else {
                EXPECT_TRUE(is_connected);
                EXPECT_EQ(count_gone, 0U);
            }
            old.reset();
            EXPECT_TRUE(turn_until([&] { return service_->counts().sessions == 0; }));
            const auto kept = counted(what_is_kept());
            EXPECT_EQ(kept.count(KeptKind::connection), 0U);
            EXPECT_EQ(kept.count(KeptKind::bell), 0U);
            EXPECT_EQ(kept.contains(KeptKind::doorbell) ? kept.at(KeptKind::doorbell) : 0,
                      ids == IdPolicy::classic ? 0U : 6U);
            return has_lived;
        });
    }
}

TEST_F(TakeOver, AKillAtAnySystemCallOfACreationMakesTheShareWholeOrNotAtAll) {
    for_each_kill([&](std::uint64_t nth) {
        Doomed first{folder_, config_in(folder_, IdPolicy::stable), {}, nth};
        first.go();
        std::optional<UnixStream> maker{UnixStream::connect(folder_.path_of("maker")).value()};
        const UnixStream& tool = *maker;
        AttachCall call;
        call.share = "made";
        call.is_session = true;
        call.may_create = true;
        call.size_bytes = 65536;
        call.slots = 2;
        const std::string line =
            control::encode_request({.id = 1, .call = "share.attach", .arguments = to_json(call)});
        static_cast<void>(tool.send(std::as_bytes(std::span{line})).has_value());
        std::optional<Client> client;
        std::vector<Fd> fds;
        while (!first.is_dead() && fds.empty()) {
            if (!tool.wait_readable(20).value()) continue;
            std::array<std::byte, 4096> said;
            auto received = tool.receive(said);
            if (!received || !*received || (*received)->count_bytes == 0) break;
            for (Fd& fd : (*received)->fds) fds.push_back(std::move(fd));
        }
        if (!fds.empty()) client.emplace(Client::adopt(std::move(fds[0])).value());
        while (client && !client->table().memory().is_open() && !first.is_dead())
            if (!client->receive(20)) break;
        const bool has_lived = client && !first.is_dead();
        first.kill();

        take_over(IdPolicy::stable);
        turn();
        if (client) {
            // Whoever holds the stream has the share: whole, or is told that it is not.
            for (int i = 0; i < 200; ++i) {
                const auto notice = client->receive(0);
                if (!notice) {
                    client.reset();
                    break;
                }
                turn(1);
            }
        }
        if (client) {
            EXPECT_EQ(status_of("made").peers.size(), 1U);
            EXPECT_EQ(client->map(MapAccess::read_only)->bytes().size(), 65536U);
        }
        client.reset();
        maker.reset();
        fds.clear();
        EXPECT_TRUE(turn_until([&] { return service_->counts().sessions == 0; }));
        // What is over goes in a timer's turn.
        for (int i = 0; i < 3; ++i) EXPECT_TRUE(loop_.run_once(10));
        const auto keys = what_is_kept();
        EXPECT_EQ(counted(keys)[KeptKind::memory], 1U) << "of the static share alone";
        EXPECT_EQ(counted(keys)[KeptKind::doorbell], 6U);
        EXPECT_EQ(counted(keys)[KeptKind::connection], 0U);
        EXPECT_EQ(counted(keys)[KeptKind::bell], 0U);
        return has_lived;
    });
}

TEST_F(TakeOver, AKillAtAnySystemCallOfAReloadLosesNobodyAndEndsInTheNewConfiguration) {
    for_each_kill([&](std::uint64_t nth) {
        const ServiceConfig before = config_in(folder_, IdPolicy::stable);
        ServiceConfig after = before;
        after.shares.push_back(before.shares[0]);
        after.shares.back().name = "n";
        after.doors.erase(after.doors.begin());
        after.doors.push_back(before.doors[0]);
        after.doors.back().share = "n";
        after.doors.back().socket.path = folder_.path_of("n");
        Doomed first{folder_, before, after, nth};
        std::optional<Client> old{join_alone("s.2").value()};
        first.go();
        bool has_lived = false;
        {
            const UnixStream tool = UnixStream::connect(folder_.path_of("s.control")).value();
            const std::string line = control::encode_request({.id = 1, .call = "share.reload"});
            // It may be dead already.
            static_cast<void>(tool.send(std::as_bytes(std::span{line})).has_value());
            while (!first.is_dead() && !has_lived) {
                if (!tool.wait_readable(20).value()) continue;
                std::array<std::byte, 4096> said;
                const auto received = tool.receive(said);
                if (!received || !*received || (*received)->count_bytes == 0) break;
                has_lived = true;
            }
        }
        first.kill();

        take_over(after);
        EXPECT_FALSE(old->receive(0).value()) << "who was there notices nothing";
        EXPECT_EQ(status_of("m").peers.size(), 1U);
        EXPECT_TRUE(join("n"));
        EXPECT_TRUE(join("s.0"));
        EXPECT_FALSE(Client::connect(folder_.path_of("s")));
        old.reset();
        EXPECT_TRUE(turn_until([&] { return service_->counts().sessions == 0; }));
        auto kept = counted(what_is_kept());
        EXPECT_EQ(kept[KeptKind::memory], 2U);
        EXPECT_EQ(kept[KeptKind::listener], 6U);
        EXPECT_EQ(kept[KeptKind::doorbell], 12U);
        EXPECT_EQ(kept[KeptKind::connection], 0U);
        return has_lived;
    });
}

}  // namespace
}  // namespace guestmem::share
