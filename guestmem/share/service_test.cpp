// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/service.hpp"

#include <gmock/gmock.h>
#include <linux/capability.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "guestmem/control/wire.hpp"
#include "guestmem/share/calls.hpp"
#include "guestmem/share/ivshmem/client.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/lingering_socket.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"
#include "guestmem/sys/undertaker.hpp"

namespace guestmem::share {
namespace {

using guestmem::testing::FaultLoopOptions;
using guestmem::testing::FaultsAre;
using guestmem::testing::for_each_fault;
using guestmem::testing::TempFolder;
using ::testing::HasSubstr;
using ::testing::Not;

class Lines final : public Log {
public:
    void write(LogLevel, std::string_view text) override { lines_ += std::string{text} + "\n"; }
    [[nodiscard]] const std::string& text() const { return lines_; }

private:
    std::string lines_;
};

/// While it lives this thread has no capabilities, so that the kernel's limits bind it as they bind a plain user.
class WithoutCapabilities {
public:
    WithoutCapabilities() {
        ::syscall(SYS_capget, &header_, before_.data());
        auto none = before_;
        for (auto& set : none) set.effective = 0;
        ::syscall(SYS_capset, &header_, none.data());
    }
    WithoutCapabilities(const WithoutCapabilities&) = delete;
    WithoutCapabilities& operator=(const WithoutCapabilities&) = delete;
    ~WithoutCapabilities() { ::syscall(SYS_capset, &header_, before_.data()); }

private:
    __user_cap_header_struct header_{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    std::array<__user_cap_data_struct, 2> before_{};
};

/// A service in the test's own thread: the test turns the loop, so that nothing happens behind its back.
class ShareService : public ::testing::Test {
protected:
    [[nodiscard]] ServiceConfig config(IdPolicy ids = IdPolicy::stable) const {
        QuickOptions options;
        options.share = {
            .name = "m", .size_bytes = 8192, .vectors = 2, .slots = 3, .ids = ids, .huge_page_bytes = 0};
        options.socket = folder_.path_of("s");
        ServiceConfig made = quick_config(options).value();
        made.limits.handshake_timeout_ms = 200;
        made.limits.refusal_hold_ms = 100;
        return made;
    }
    void start(IdPolicy ids = IdPolicy::stable) {
        auto made = Service::create(loop_, log_, config(ids));
        ASSERT_TRUE(made) << made.error().message();
        service_.emplace(std::move(*made));
    }
    /// Until nothing happens any more.
    void turn(int rounds = 20) {
        for (int i = 0; i < rounds; ++i) ASSERT_TRUE(loop_.run_once(0));
    }
    template <typename Predicate>
    bool turn_until(Predicate is_so) {
        for (int i = 0; i < 300 && !is_so(); ++i)
            if (!loop_.run_once(10)) return false;
        return is_so();
    }
    Result<Client> join(const std::string& door = "s") {
        Client client = GM_TRY(Client::connect(folder_.path_of(door)));
        for (int i = 0; i < 200; ++i) {
            const auto* own =
                client.table().own_id() ? client.table().find(*client.table().own_id()) : nullptr;
            if (own != nullptr && own->size() == 2) return client;
            if (!GM_TRY(client.receive(0))) GM_TRY(loop_.run_once(10));
        }
        return Error{Errc::timed_out, "the handshake does not end"};
    }

    /// One call on the control socket, the loop turned in between.
    control::Answer ask(const UnixStream& tool, const std::string& call,
                        const std::string& arguments = to_json(NamedCall{"m"})) {
        const std::string line = control::encode_request({.id = 1, .call = call, .arguments = arguments});
        EXPECT_TRUE(tool.send(std::as_bytes(std::span{line})));
        turn();
        std::string said(64 * 1024, ' ');
        auto received = tool.receive(std::as_writable_bytes(std::span{said})).value();
        said.resize(received->count_bytes);
        // What came with it stays open until the test ends.
        for (Fd& fd : received->fds) kept_.push_back(std::move(fd));
        return control::decode_answer(said).value();
    }

    std::vector<Fd> kept_;
    TempFolder folder_;
    Lines log_;
    EventLoop loop_ = EventLoop::create().value();
    std::optional<Service> service_;
};

TEST_F(ShareService, GivesTheLowestFreeSlotAndTheFixedOnes) {
    start();
    const auto fixed = join("s.1");
    const auto first = join();
    const auto second = join();
    ASSERT_TRUE(fixed && first && second);
    EXPECT_EQ(fixed->table().own_id(), 1U);
    EXPECT_EQ(first->table().own_id(), 0U);
    EXPECT_EQ(second->table().own_id(), 2U);
    EXPECT_EQ(join().error().os_error(), ENOSPC);
    EXPECT_EQ(join("s.1").error().os_error(), EBUSY);
    EXPECT_THAT(log_.text(), HasSubstr("slot 1 is taken (EBUSY)"));
}

TEST_F(ShareService, ARefusalIsHeldForItsTimeAndNotLonger) {
    start();
    const auto holder = join("s.0");
    Client refused = Client::connect(folder_.path_of("s.0")).value();
    turn();
    EXPECT_EQ(refused.receive(1000).error().os_error(), EBUSY);
    EXPECT_EQ(service_->counts().refusals, 1U);
    EXPECT_FALSE(refused.receive(0).value()) << "silence";
    EXPECT_TRUE(turn_until([&] { return service_->counts().refusals == 0; }));
    EXPECT_EQ(refused.receive(1000).error().code(), Errc::unavailable);
}

TEST_F(ShareService, RefusalsAreBoundedInNumber) {
    auto made = config();
    made.limits.refusals_held = 2;
    made.limits.refusal_hold_ms = 60'000;
    service_.emplace(Service::create(loop_, log_, made).value());
    const auto holder = join("s.0");
    std::vector<Client> refused;
    for (int i = 0; i < 4; ++i) {
        refused.push_back(Client::connect(folder_.path_of("s.0")).value());
        turn();
        EXPECT_EQ(refused.back().receive(1000).error().os_error(), EBUSY);
    }
    EXPECT_EQ(service_->counts().refusals, 2U);
    EXPECT_EQ(refused[0].receive(0).error().code(), Errc::unavailable) << "the oldest is let go";
    EXPECT_FALSE(refused[3].receive(0).value());
}

TEST_F(ShareService, AKickBeforeTheNextHolderWaitsAndOneBeforeTheLastLeftIsGone) {
    start();
    const auto watcher = join("s.0");
    {
        const auto holder = join("s.1");
        ASSERT_TRUE(watcher->ring(1, 0));
    }
    turn();
    ASSERT_TRUE(watcher->ring(1, 1));
    const auto next = join("s.1");
    EXPECT_EQ(next->wait(0, 0).value(), 0U) << "for the holder before";
    EXPECT_EQ(next->wait(1, 0).value(), 1U);
}

TEST_F(ShareService, AMuteClientIsClosedAtTheDeadlineAndItsSlotIsFree) {
    auto made = config();
    made.shares[0].vectors = 600;
    service_.emplace(Service::create(loop_, log_, made).value());
    const Client mute = Client::connect(folder_.path_of("s.0")).value();
    turn();
    EXPECT_EQ(service_->counts().sessions, 1U);
    EXPECT_TRUE(turn_until([&] { return service_->counts().sessions == 0; }));
    EXPECT_THAT(log_.text(), HasSubstr("handshake deadline"));
}

TEST_F(ShareService, ConnectionsOfAUserAreBounded) {
    auto made = config();
    made.limits.connections_per_uid = 2;
    service_.emplace(Service::create(loop_, log_, made).value());
    auto first = join();
    const auto second = join();
    EXPECT_EQ(join().error().os_error(), EUSERS);
    first = Error{Errc::io, "gone"};
    turn();
    EXPECT_TRUE(join());
}

TEST_F(ShareService, ConnectionsOfADoorAreBounded) {
    start();
    const auto holder = join("s.0");
    std::vector<Client> others;
    const auto answer = [&] {
        others.push_back(Client::connect(folder_.path_of("s.0")).value());
        turn();
        return others.back().receive(1000).error().os_error();
    };
    // One slot and eight more: those are refused because the slot is taken, and held.
    for (int i = 0; i < 8; ++i) EXPECT_EQ(answer(), EBUSY) << i;
    EXPECT_EQ(answer(), EUSERS);
    EXPECT_EQ(others.back().receive(1000).error().code(), Errc::unavailable) << "closed at once";
    EXPECT_TRUE(join("s.1")) << "another door is another matter";
}

TEST_F(ShareService, WhatOneDoorsClientsSendToCloseSlowlyClosesNoOtherDoor) {
    start();
    std::list<guestmem::testing::LingeringSocket> slow;
    std::list<UnixStream> hostile;
    const std::array<std::byte, 1> byte{};
    // As many as there may be in all, if the door takes them.
    for (std::size_t i = 0; i < max_burials; ++i) {
        hostile.push_back(UnixStream::connect(folder_.path_of("s.0")).value());
        slow.emplace_back().give_to(hostile.back(), byte);
        turn();
    }
    EXPECT_TRUE(join("s.1"));
    EXPECT_TRUE(join("s"));
    EXPECT_FALSE(join("s.0")) << "the door they came through waits";
    slow.clear();
    hostile.clear();
    std::optional<Client> next;
    EXPECT_TRUE(turn_until([&] {
        auto joined = join("s.0");
        if (joined) next = std::move(*joined);
        return next.has_value();
    }));
}

TEST_F(ShareService, AUserWhoseToolsCloseSlowlyAttachesNoMore) {
    start();
    const UnixStream tool = UnixStream::connect(folder_.path_of("s.control")).value();
    std::list<guestmem::testing::LingeringSocket> slow;
    const std::array<std::byte, 1> byte{};
    for (std::size_t i = 0; i < max_burials_of_party; ++i) {
        ASSERT_FALSE(ask(tool, "share.attach").error);
        const UnixStream attached = UnixStream::adopt(std::move(kept_.back())).value();
        slow.emplace_back().give_to(attached, byte);
        ASSERT_TRUE(turn_until([&] { return service_->counts().sessions == 0; }));
    }
    const auto refused = ask(tool, "share.attach").error;
    ASSERT_TRUE(refused);
    EXPECT_EQ(refused->os_error(), EUSERS);
    EXPECT_TRUE(join()) << "whoever comes by a door";
    slow.clear();
    EXPECT_TRUE(turn_until([&] { return !ask(tool, "share.attach").error; }));
}

TEST_F(ShareService, AQueueOfASessionIsAsItsVmsLimitsSay) {
    auto made = config(IdPolicy::classic);
    made.shares[0].vectors = 20;
    made.limits.handshake_timeout_ms = 60'000;
    VmConfig vm;
    vm.name = "linux";
    vm.socket = ListenOptions{.path = folder_.path_of("linux")};
    vm.limits.queued_messages = 40;
    made.vms.push_back(vm);
    service_.emplace(Service::create(loop_, log_, made).value());
    const UnixStream tool = UnixStream::connect(folder_.path_of("linux")).value();
    ASSERT_FALSE(ask(tool, "share.attach").error);
    for (int visit = 0; visit < 4; ++visit) {
        EXPECT_EQ(service_->counts().sessions, visit < 2 ? 1U : service_->counts().sessions);
        {
            const Client visitor = Client::connect(folder_.path_of("s")).value();
            turn();
        }
        turn();
    }
    EXPECT_EQ(service_->counts().sessions, 0U);
    EXPECT_THAT(log_.text(), HasSubstr("it does not read"));
}

TEST_F(ShareService, AVmIsToldNoNumbersOfTheOthers) {
    auto made = config();
    VmConfig vm;
    vm.name = "linux";
    vm.socket = ListenOptions{.path = folder_.path_of("linux")};
    made.vms.push_back(vm);
    made.totals.peers = 1;
    service_.emplace(Service::create(loop_, log_, made).value());
    const auto peer = join();
    const UnixStream tool = UnixStream::connect(folder_.path_of("linux")).value();
    const auto refused = ask(tool, "share.attach").error;
    ASSERT_TRUE(refused);
    EXPECT_EQ(refused->os_error(), EDQUOT);
    EXPECT_THAT(refused->message(), Not(::testing::ContainsRegex("[0-9]")));
    EXPECT_THAT(log_.text(), HasSubstr("all VMs together: 2 peers would be beyond the limit of 1"));
}

TEST_F(ShareService, AVmIsNotToldHowMuchMemoryTheHostHas) {
    auto made = config();
    VmConfig vm;
    vm.name = "linux";
    vm.socket = ListenOptions{.path = folder_.path_of("linux")};
    made.vms.push_back(vm);
    service_.emplace(Service::create(loop_, log_, made).value());
    const UnixStream tool = UnixStream::connect(folder_.path_of("linux")).value();
    AttachCall call;
    call.share = "big";
    call.is_session = true;
    call.may_create = true;
    call.size_bytes = max_size_bytes;
    const auto refused = ask(tool, "share.attach", to_json(call)).error;
    ASSERT_TRUE(refused);
    EXPECT_EQ(refused->code(), Errc::exhausted);
    EXPECT_THAT(refused->message(), Not(::testing::ContainsRegex("[0-9]")));
    EXPECT_THAT(log_.text(), HasSubstr("promised to others"));
}

TEST_F(ShareService, HostToolsCountAsConnectionsOfTheirUser) {
    auto made = config();
    made.limits.connections_per_uid = 1;
    service_.emplace(Service::create(loop_, log_, made).value());
    const UnixStream tool = UnixStream::connect(folder_.path_of("s.control")).value();
    EXPECT_FALSE(ask(tool, "share.attach").error);
    const auto refused = ask(tool, "share.attach").error;
    ASSERT_TRUE(refused);
    EXPECT_EQ(refused->os_error(), EUSERS);
}

TEST_F(ShareService, OutOfDescriptorsANewcomerIsToldSo) {
    start();
    FaultInjector injector{0, {.only = SysCall::accept, .os_error = EMFILE, .repeat = 1}};
    Client newcomer = Client::connect(folder_.path_of("s")).value();
    turn();
    EXPECT_TRUE(injector.has_fired());
    EXPECT_EQ(newcomer.receive(1000).error().os_error(), EMFILE);
    EXPECT_THAT(log_.text(), HasSubstr("the newcomer is refused"));
    EXPECT_TRUE(join()) << "recovered";
}

TEST_F(ShareService, WithoutEvenOneDescriptorItLooksAgainLater) {
    start();
    FaultInjector injector{0, {.only = SysCall::accept, .os_error = EMFILE, .repeat = 4}};
    Client newcomer = Client::connect(folder_.path_of("s.2")).value();
    EXPECT_TRUE(turn_until([&] { return service_->counts().sessions == 1; }));
}

TEST_F(ShareService, ACutClientThatKeepsItsDescriptorsCountsUntilItCloses) {
    const WithoutCapabilities plain;
    auto made = config();
    made.shares[0].vectors = 600;
    made.limits.connections_per_uid = 1;
    service_.emplace(Service::create(loop_, log_, made).value());
    std::optional<Client> mute = Client::connect(folder_.path_of("s.0")).value();
    EXPECT_TRUE(turn_until([&] { return service_->counts().lingering == 1; }));
    EXPECT_EQ(service_->counts().sessions, 0U) << "its slot is free";
    Client next = Client::connect(folder_.path_of("s.1")).value();
    turn();
    EXPECT_EQ(next.receive(1000).error().os_error(), EUSERS);
    mute.reset();
    EXPECT_TRUE(turn_until([&] { return service_->counts().lingering == 0; }));
    const Client last = Client::connect(folder_.path_of("s.1")).value();
    EXPECT_TRUE(turn_until([&] { return service_->counts().sessions == 1; }));
}

TEST_F(ShareService, AHandshakeThatDawdlesIsCutInTheEnd) {
    auto made = config();
    made.shares[0].vectors = 600;
    service_.emplace(Service::create(loop_, log_, made).value());
    Client slow = Client::connect(folder_.path_of("s.0")).value();
    EXPECT_TRUE(turn_until([&] { return service_->counts().sessions == 1; }));
    // Some messages every 100 ms, where 200 ms without any would be the end of it.
    const std::uint64_t began = loop_.now_ms();
    while (service_->counts().sessions == 1 && loop_.now_ms() - began < 5000) {
        for (int i = 0; i < 12; ++i)
            if (!slow.receive(0)) break;
        const std::uint64_t until = loop_.now_ms() + 100;
        while (loop_.now_ms() < until) ASSERT_TRUE(loop_.run_once(10));
    }
    const std::uint64_t took = loop_.now_ms() - began;
    EXPECT_GE(took, 1000U) << "progress moves the deadline";
    EXPECT_LT(took, 4500U) << "six timeouts are the end";
    EXPECT_EQ(service_->counts().sessions, 0U);
}

/// A connection of a process of another user that has ended since.
UnixStream connection_left_behind(const std::string& path, std::uint32_t user) {
    auto [ours, theirs] = UnixStream::pair().value();
    const pid_t child = ::fork();
    if (child == 0) {
        const bool is_other = ::setresuid(user, user, user) == 0;
        const auto stream = UnixStream::connect(path);
        const std::array<std::byte, 1> word{};
        const FdView fd = stream ? stream->view() : FdView{};
        ::_exit(is_other && stream && theirs.send(word, std::span{&fd, 1}) ? 0 : 1);
    }
    int status = -1;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
    std::array<std::byte, 1> word{};
    return UnixStream::adopt(std::move(ours.receive(word).value()->fds.at(0))).value();
}

TEST_F(ShareService, WhereVmsAreKnownByControlGroupsSomebodyWhoseOwnCannotBeToldIsRefused) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
    std::filesystem::permissions(folder_.path(), std::filesystem::perms{0755});
    constexpr std::uint32_t somebody = 4242;
    for (const char* const cgroup : {"/machine.slice/*", ""}) {
        auto made = config();
        made.control.socket.mode = 0666;
        VmConfig vm;
        vm.name = "linux";
        vm.match = {.user = somebody, .cgroup = cgroup};
        made.vms.push_back(vm);
        service_.emplace(Service::create(loop_, log_, made).value());
        const auto error =
            ask(connection_left_behind(made.control.socket.path, somebody), "share.list").error;
        ASSERT_EQ(error.has_value(), *cgroup != '\0');
        if (error) {
            EXPECT_EQ(error->os_error(), EACCES);
        }
        service_.reset();
    }
    EXPECT_THAT(log_.text(), HasSubstr("its control group cannot be told"));
}

TEST_F(ShareService, AQueueOfNoticesIsBounded) {
    auto made = config(IdPolicy::classic);
    made.shares[0].vectors = 20;
    made.limits.queued_messages = 40;
    made.limits.handshake_timeout_ms = 60'000;
    service_.emplace(Service::create(loop_, log_, made).value());
    const Client mute = Client::connect(folder_.path_of("s")).value();
    turn();
    const auto visit = [&] {
        {
            const Client visitor = Client::connect(folder_.path_of("s")).value();
            turn();
        }
        turn();
    };
    // A visit is 21 messages. Of its handshake about half is in its socket, which makes room for one more visit.
    visit();
    visit();
    EXPECT_EQ(service_->counts().sessions, 1U);
    visit();
    visit();
    EXPECT_EQ(service_->counts().sessions, 0U);
    EXPECT_THAT(log_.text(), HasSubstr("it does not read"));
}

TEST_F(ShareService, TooFewDescriptorsIsAnErrorWithTheNumber) {
    const std::uint64_t needed = descriptors_needed(config());
    EXPECT_GE(needed, (3U + 1U) * 2U + 3U + 64U) << "(slots + 1) x vectors + slots + 64";
}

TEST_F(ShareService, ASecondServiceOnTheSameSocketsTouchesNothing) {
    start();
    const auto before = folder_.entries();
    Lines other_log;
    const auto second = Service::create(loop_, other_log, config());
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code(), Errc::busy);
    EXPECT_EQ(folder_.entries(), before);
    EXPECT_TRUE(join());
}

TEST_F(ShareService, RemovesItsSocketsAtTheEnd) {
    start();
    EXPECT_EQ(folder_.entries().size(), 5U);
    service_.reset();
    EXPECT_TRUE(folder_.entries().empty());
}

TEST_F(ShareService, ClassicPeersHearOfEachOther) {
    start(IdPolicy::classic);
    auto first = join();
    {
        const auto second = join();
        ASSERT_TRUE(second);
        EXPECT_EQ(second->table().own_id(), 1U);
        EXPECT_NE(second->table().find(0), nullptr);
        while (first->receive(0).value()) {
        }
        EXPECT_NE(first->table().find(1), nullptr);
    }
    turn();
    while (first->receive(0).value()) {
    }
    EXPECT_EQ(first->table().find(1), nullptr);
    EXPECT_EQ(join()->table().own_id(), 2U);
}

TEST_F(ShareService, DescriptorsInFlightAtTheLimitAreTriedAgainByATimer) {
    start();
    {
        // Once the handshake begins, the kernel says ETOOMANYREFS for a while.
        FaultInjector injector{3, {.only = SysCall::sendmsg, .os_error = ETOOMANYREFS, .repeat = 3}};
        const auto joined = join();
        EXPECT_TRUE(joined);
        EXPECT_TRUE(injector.has_fired());
    }
}

TEST_F(ShareService, CreateUndoesEverythingWhenAnySystemCallFails) {
    // sd-event keeps its timer descriptor once it had a timer: the loop's own, made before the count.
    ASSERT_TRUE(loop_.add_timer(0, [] {}));
    const std::uint64_t count = for_each_fault([&] { return Service::create(loop_, log_, config()); },
                                               [&] { EXPECT_TRUE(folder_.entries().empty()); });
    EXPECT_GT(count, 30U);
}

TEST_F(ShareService, AnyFailureDuringAHandshakeHurtsAtMostThatClient) {
    start();
    const auto bystander = join("s.2");
    ASSERT_TRUE(bystander);
    const auto attempt = [&] {
        bool has_joined = false;
        {
            auto client = UnixStream::connect(folder_.path_of("s.0"));
            if (!client) return false;
            turn(60);
            has_joined = service_->counts().sessions == 2;
        }
        turn(60);
        return has_joined;
    };
    ASSERT_TRUE(attempt());
    const std::uint64_t count =
        for_each_fault(FaultLoopOptions{.faults = FaultsAre::survivable}, attempt, [&] {
            ASSERT_TRUE(turn_until([&] { return service_->counts().sessions == 1; }));
            ASSERT_TRUE(turn_until([&] { return service_->counts().refusals == 0; }));
            EXPECT_TRUE(join("s.0")) << "the next one is served";
            turn(60);
        });
    EXPECT_GT(count, 8U);
}

TEST_F(ShareService, StatShowsPendingKicksAndTakesNone) {
    start();
    const auto watcher = join("s.0");
    ASSERT_TRUE(watcher->ring(1, 1));
    const UnixStream tool = UnixStream::connect(folder_.path_of("s.control")).value();
    for (int twice = 0; twice < 2; ++twice) {
        const auto status = parse_share_status(ask(tool, "share.stat").result.value());
        ASSERT_TRUE(status);
        EXPECT_EQ(status->pending[1].per_vector[1], 1U);
        EXPECT_EQ(status->peers.size(), 1U);
    }
    EXPECT_EQ(join("s.1")->wait(1, 0).value(), 1U);
}

}  // namespace
}  // namespace guestmem::share
