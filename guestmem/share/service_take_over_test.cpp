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
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/poll.hpp"
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

/// A session as a client sees it: what it was told by the answer, and what came by the stream since.
struct Told {
    SessionReply reply;
    Client client;
    EventFd bell;
    Fd own_page;                           ///< of the sender pages
    std::optional<FileFacts> memory = {};  ///< before the kill
};

bool is_same_file(const FileFacts& one, const FileFacts& other) {
    return one.device == other.device && one.inode == other.inode;
}

void ask_to_make(const UnixStream& maker) {
    AttachCall call;
    call.share = "made";
    call.is_session = true;
    call.may_create = true;
    call.size_bytes = 65536;
    call.vectors = 2;
    call.slots = 2;
    const std::string line =
        control::encode_request({.id = 1, .call = "share.attach", .arguments = to_json(call)});
    // A service that is dead already does not hear it.
    static_cast<void>(maker.send(std::as_bytes(std::span{line})).has_value());
}

/// The answer, however much of it the service could still send: a client that finds all of it there was told.
std::optional<Told> hear_what_was_made(const UnixStream& maker, const std::function<bool()>& turn) {
    std::string said;
    std::vector<Fd> fds;
    while (!said.ends_with('\n')) {
        const bool has_more = turn();
        if (!maker.wait_readable(has_more ? 10 : 0).value()) {
            // It may wait at the listening socket, which outlives the service.
            if (!has_more) return std::nullopt;
            continue;
        }
        std::array<std::byte, 4096> part;
        auto received = maker.receive(part);
        if (!received || !*received || (*received)->count_bytes == 0) return std::nullopt;
        said.append(reinterpret_cast<const char*>(part.data()), (*received)->count_bytes);
        for (Fd& fd : (*received)->fds) fds.push_back(std::move(fd));
    }
    const auto answer = control::decode_answer(said).value();
    EXPECT_TRUE(answer.result) << said;
    if (!answer.result || fds.size() != 5) return std::nullopt;
    return Told{.reply = parse_session_reply(*answer.result).value(),
                .client = Client::adopt(std::move(fds[0])).value(),
                .bell = EventFd::adopt(std::move(fds[2])).value(),
                .own_page = std::move(fds[3])};
}

/// Messages as long as they come; false when the stream has ended.
bool hear_stream(Told& told) {
    for (;;) {
        const auto notice = told.client.receive(0);
        if (!notice || !*notice) return notice.has_value();
        if ((*notice)->kind == NoticeKind::memory)
            told.memory = file_facts(told.client.table().memory()).value();
    }
}

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
    /// The same; one that is killed in this was before a system call, and has noted all that it sent.
    void settle_unless_killed(Doomed& service) {
        const UnixStream tool = UnixStream::connect(folder_.path_of("s.control")).value();
        const std::string line = control::encode_request({.id = 1, .call = "share.list"});
        static_cast<void>(tool.send(std::as_bytes(std::span{line})).has_value());
        while (!service.is_dead() && !tool.wait_readable(10).value()) continue;
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
    /// Who was told of the share is in it still, under the same id, with the same memory, doorbells and pages. The one
    /// excuse: a message was begun, and nobody can say whether it was sent.
    void find_again(Told& told, bool was_whole) {
        const auto completed = complete(told.client);
        if (!completed) {
            EXPECT_FALSE(was_whole) << completed.error().message() << log_.text();
            EXPECT_EQ(completed.error().code(), Errc::unavailable);
            EXPECT_THAT(log_.text(), HasSubstr("nobody can say whether message"));
            return;
        }
        EXPECT_EQ(told.client.table().own_id(), told.reply.slot);
        const FileFacts memory = file_facts(told.client.table().memory()).value();
        EXPECT_TRUE(!told.memory || is_same_file(memory, *told.memory));
        EXPECT_TRUE(told.bell.drain());
        const UnixStream maker = UnixStream::connect(folder_.path_of("maker")).value();
        ask_to_make(maker);
        auto other = hear_what_was_made(maker, [&] { return loop_.run_once(0).has_value(); });
        ASSERT_TRUE(other);
        EXPECT_FALSE(other->reply.is_created) << "it is there";
        EXPECT_NE(other->reply.slot, told.reply.slot);
        const auto joined = complete(other->client);
        ASSERT_TRUE(joined) << joined.error().message();
        EXPECT_TRUE(is_same_file(file_facts(other->client.table().memory()).value(), memory));
        const std::byte last = other->client.map(MapAccess::read_only)->bytes()[65535];
        EXPECT_EQ(last, was_whole ? std::byte{77} : std::byte{0});
        EXPECT_EQ(told.bell.drain().value(), 1U) << "it is told of the other one";
        ASSERT_TRUE(told.client.ring(other->reply.slot, 1));
        ASSERT_TRUE(other->client.ring(told.reply.slot, 0));
        EXPECT_EQ(other->client.wait(1, 0).value(), 1U);
        EXPECT_EQ(told.client.wait(0, 0).value(), 1U);
        EXPECT_FALSE(is_same_file(file_facts(told.own_page).value(), file_facts(other->own_page).value()));
        EXPECT_EQ(status_of("made").peers.size(), 2U);
    }
    /// The name is free, and what was begun under it in nobody's way.
    void make_it_once_more() {
        const UnixStream maker = UnixStream::connect(folder_.path_of("maker")).value();
        ask_to_make(maker);
        {
            auto made = hear_what_was_made(maker, [&] { return loop_.run_once(0).has_value(); });
            ASSERT_TRUE(made);
            EXPECT_TRUE(made->reply.is_created);
            EXPECT_TRUE(complete(made->client));
            EXPECT_EQ(made->client.map(MapAccess::read_only)->bytes()[65535], std::byte{0});
        }
        EXPECT_TRUE(turn_until([&] { return service_->counts().sessions == 0; }));
        // What is over goes in a timer's turn.
        for (int i = 0; i < 3; ++i) EXPECT_TRUE(loop_.run_once(10));
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

TEST_F(TakeOver, AKillAtAnySystemCallOfACreationLeavesWhoWasToldOfTheShareInIt) {
    std::uint64_t count_kept = 0;
    std::uint64_t count_whole = 0;
    for_each_kill([&](std::uint64_t nth) {
        Doomed first{folder_, config_in(folder_, IdPolicy::stable), {}, nth};
        first.go();
        std::optional<UnixStream> maker{UnixStream::connect(folder_.path_of("maker")).value()};
        ask_to_make(*maker);
        std::optional<Told> told = hear_what_was_made(*maker, [&] { return !first.is_dead(); });
        while (told && !is_whole(told->client) && hear_stream(*told) && !first.is_dead())
            static_cast<void>(told->client.view().is_open() &&
                              poll_readable(told->client.view(), 10).value());
        const bool has_lived = told && !first.is_dead();
        if (has_lived) settle_unless_killed(first);
        first.kill();
        const bool was_whole = told && hear_stream(*told) && is_whole(told->client);
        if (was_whole) told->client.map(MapAccess::read_write)->bytes()[65535] = std::byte{77};

        if (!told) maker.reset();
        log_ = {};
        take_over(IdPolicy::stable);
        turn();
        if (told) find_again(*told, was_whole);
        count_kept += told && is_whole(told->client) ? 1U : 0U;
        count_whole += was_whole ? 1U : 0U;
        told.reset();
        maker.reset();
        EXPECT_TRUE(turn_until([&] { return service_->counts().sessions == 0; }));
        make_it_once_more();
        const auto keys = what_is_kept();
        EXPECT_EQ(counted(keys)[KeptKind::memory], 1U) << "of the static share alone";
        EXPECT_EQ(counted(keys)[KeptKind::doorbell], 6U);
        EXPECT_EQ(counted(keys)[KeptKind::connection], 0U);
        EXPECT_EQ(counted(keys)[KeptKind::bell], 0U);
        return has_lived;
    });
    EXPECT_GT(count_whole, 2U);
    EXPECT_GT(count_kept, count_whole) << "also those that were in the middle";
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
