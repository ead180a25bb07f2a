// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/control/wire.hpp"
#include "guestmem/share/calls.hpp"
#include "guestmem/share/ivshmem/client.hpp"
#include "guestmem/share/service.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem::share {
namespace {

using guestmem::testing::TempFolder;
using ::testing::Contains;
using ::testing::HasSubstr;

class Lines final : public Log {
public:
    void write(LogLevel, std::string_view text) override { lines_ += std::string{text} + "\n"; }
    [[nodiscard]] const std::string& text() const { return lines_; }

private:
    std::string lines_;
};

class Reload : public ::testing::Test {
protected:
    Reload() {
        next_.control.socket.path = folder_.path_of("control");
        next_.shares = {share("m")};
        next_.vms = {vm("linux", {{.verdict = Verdict::allow, .pattern = "*"}})};
        next_.doors = {door("m", {}, "m.sock"), door("m", "linux", "linux.sock", {0})};
        ServiceOptions options;
        options.reread = [this] { return Result<ServiceConfig>{next_}; };
        service_.emplace(Service::create(loop_, log_, next_, std::move(options)).value());
    }
    static ShareConfig share(std::string name) {
        ShareConfig config;
        config.name = std::move(name);
        config.size_bytes = 8192;
        config.slots = 3;
        return config;
    }
    static VmConfig vm(std::string name, std::vector<Rule> rules) {
        VmConfig config;
        config.name = std::move(name);
        config.rules = std::move(rules);
        return config;
    }
    DoorConfig door(std::string to, std::string vm, const std::string& path,
                    std::vector<std::uint32_t> slots = {}) {
        DoorConfig config;
        config.share = std::move(to);
        config.vm = std::move(vm);
        config.slots = std::move(slots);
        config.socket.path = folder_.path_of(path);
        return config;
    }
    void turn(int rounds = 20) {
        for (int i = 0; i < rounds; ++i) ASSERT_TRUE(loop_.run_once(0));
    }
    Result<Client> join(const std::string& path) {
        Client client = GM_TRY(Client::connect(folder_.path_of(path)));
        for (int i = 0; i < 1000; ++i) {
            const auto* own =
                client.table().own_id() ? client.table().find(*client.table().own_id()) : nullptr;
            if (own != nullptr) return client;
            if (!GM_TRY(client.receive(0))) GM_TRY(loop_.run_once(10));
        }
        return Error{Errc::timed_out, "the handshake does not end"};
    }
    std::string ask(const std::string& call, const std::string& arguments) {
        const UnixStream tool = UnixStream::connect(folder_.path_of("control")).value();
        const std::string line = control::encode_request({.id = 1, .call = call, .arguments = arguments});
        EXPECT_TRUE(tool.send(std::as_bytes(std::span{line})));
        turn();
        std::string said(64 * 1024, ' ');
        auto received = tool.receive(std::as_writable_bytes(std::span{said})).value();
        said.resize(received->count_bytes);
        const auto answer = control::decode_answer(said).value();
        return answer.result ? *answer.result : "error: " + answer.error->message();
    }
    std::vector<std::string> shares() {
        std::vector<std::string> names;
        const ServiceSummary summary = parse_service_summary(ask("share.list", "{}")).value();
        for (const ShareSummary& one : summary.shares) names.push_back(one.name);
        return names;
    }
    ShareStatus status_of(const std::string& name) {
        return parse_share_status(ask("share.stat", to_json(NamedCall{name}))).value();
    }

    TempFolder folder_;
    Lines log_;
    EventLoop loop_ = EventLoop::create().value();
    ServiceConfig next_;
    std::optional<Service> service_;
};

TEST_F(Reload, OfTheSameConfigurationChangesNothing) {
    const auto changes = service_->reload();
    ASSERT_TRUE(changes) << changes.error().message();
    EXPECT_TRUE(changes->empty());
}

TEST_F(Reload, OpensWhatIsNewAndLeavesThosePeersInPeace) {
    const auto peer = join("m.sock");
    next_.shares.push_back(share("n"));
    next_.doors.push_back(door("n", {}, "n.sock"));
    const auto changes = service_->reload();
    ASSERT_TRUE(changes) << changes.error().message();
    EXPECT_THAT(*changes, Contains("share 'n': made"));
    EXPECT_TRUE(join("n.sock"));
    EXPECT_EQ(status_of("m").peers.size(), 1U);
    EXPECT_TRUE(join("m.sock"));
}

TEST_F(Reload, AShareThatIsGoneTakesNoNewcomersAndEndsWithItsLastPeer) {
    auto peer = join("m.sock");
    ASSERT_TRUE(peer);
    next_.shares = {share("n")};
    next_.doors = {door("n", {}, "n.sock")};
    ASSERT_TRUE(service_->reload());
    EXPECT_EQ(Client::connect(folder_.path_of("m.sock")).error().code(), Errc::not_found);
    EXPECT_EQ(shares().size(), 2U) << "while somebody is in it";
    EXPECT_FALSE(peer->receive(0).value()) << "not a word to who is there";
    peer = Error{Errc::unavailable, "left"};
    turn();
    // It goes in a timer's turn.
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(loop_.run_once(10));
    EXPECT_EQ(shares(), std::vector<std::string>{"n"});
}

TEST_F(Reload, AShareWithPeersDoesNotChangeUnderThem) {
    {
        const auto peer = join("m.sock");
        next_.shares[0].size_bytes = 16384;
        const auto refused = service_->reload();
        ASSERT_FALSE(refused);
        EXPECT_EQ(refused.error().os_error(), EBUSY);
        EXPECT_EQ(status_of("m").summary.size_bytes, 8192U);
    }
    turn();
    ASSERT_TRUE(service_->reload());
    EXPECT_EQ(status_of("m").summary.size_bytes, 16384U);
    EXPECT_TRUE(join("linux.sock"));
}

TEST_F(Reload, IsAllOrNothing) {
    next_.shares.push_back(share("n"));
    next_.doors.push_back(door("n", {}, "n.sock"));
    next_.doors[0].slots = {2};
    next_.doors.push_back(door("n", {}, "no/such/folder"));
    const auto refused = service_->reload();
    ASSERT_FALSE(refused);
    EXPECT_THAT(refused.error().message(), HasSubstr("no/such"));
    EXPECT_EQ(shares(), std::vector<std::string>{"m"});
    EXPECT_FALSE(Client::connect(folder_.path_of("n.sock")));
    EXPECT_EQ(join("m.sock")->table().own_id(), 1U) << "the door gives what it gave";
    EXPECT_THAT(log_.text(), HasSubstr("reload: nothing has changed"));
}

TEST_F(Reload, WhoLosesARightIsShownAndStaysAndComesInNoMore) {
    auto peer = join("linux.sock");
    ASSERT_TRUE(peer);
    next_.vms[0].rules = {{.verdict = Verdict::deny, .pattern = "m", .permissions = {}, .line = 3}};
    const auto changes = service_->reload();
    ASSERT_TRUE(changes);
    EXPECT_THAT(*changes, Contains(HasSubstr("has lost its right")));
    ASSERT_EQ(status_of("m").peers.size(), 1U);
    EXPECT_TRUE(status_of("m").peers[0].is_revoked);
    EXPECT_FALSE(peer->receive(0).value());
    peer = Error{Errc::unavailable, "left"};
    turn();
    EXPECT_EQ(join("linux.sock").error().os_error(), EACCES);
    next_.vms[0].rules.clear();
    ASSERT_TRUE(service_->reload());
    EXPECT_TRUE(join("linux.sock"));
}

TEST_F(Reload, TakesNoTimeForThePagesOfANewShare) {
    next_.shares.push_back(share("n"));
    next_.shares[1].size_bytes = 64 << 20;
    next_.doors.push_back(door("n", {}, "n.sock"));
    ASSERT_TRUE(service_->reload());
    // A chunk a turn at the most, and there are more chunks than turns in a question.
    EXPECT_EQ(status_of("n").summary.stage, "blank");
    EXPECT_TRUE(join("m.sock"));
    const auto peer = join("n.sock");
    EXPECT_TRUE(peer) << "when its pages are there";
    EXPECT_EQ(status_of("n").summary.stage, "ready");
}

TEST_F(Reload, AShareForWhichThereIsNoRoomIsRefused) {
    next_.shares.push_back(share("n"));
    next_.shares[1].size_bytes = max_size_bytes;
    const auto refused = service_->reload();
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::exhausted);
    EXPECT_EQ(shares(), std::vector<std::string>{"m"});
}

TEST_F(Reload, ASocketThatIsAnotherVmsDropsWhoWasThere) {
    next_.vms[0].socket = ListenOptions{.path = folder_.path_of("office")};
    ASSERT_TRUE(service_->reload());
    const UnixStream before = UnixStream::connect(folder_.path_of("office")).value();
    ASSERT_TRUE(before.set_nonblocking());
    turn();
    std::array<std::byte, 16> buffer{};
    EXPECT_FALSE(before.receive(buffer).value().has_value());
    next_.vms.push_back(vm("other", {}));
    next_.vms[1].socket = std::exchange(next_.vms[0].socket, std::nullopt);
    const auto changes = service_->reload();
    ASSERT_TRUE(changes) << changes.error().message();
    EXPECT_THAT(*changes, Contains(HasSubstr("of vm 'other' from here on")));
    turn();
    const auto end = before.receive(buffer);
    EXPECT_TRUE(!end || (*end && (*end)->count_bytes == 0)) << "the connection is still open";
}

TEST_F(Reload, AChangeOfAccessThatFailsHalfWayIsTakenBack) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can give a file away";
    const auto group_of = [&](const std::string& name) {
        struct stat status{};
        EXPECT_EQ(::stat(folder_.path_of(name).c_str(), &status), 0);
        return status.st_gid;
    };
    next_.control.socket.group = 4243;
    {
        const FaultInjector injector{0, {.only = SysCall::fchmod}};
        EXPECT_FALSE(service_->reload());
        EXPECT_TRUE(injector.has_fired());
    }
    EXPECT_EQ(group_of("control"), ::getegid());
    next_.doors[0].socket.group = 4244;
    ASSERT_TRUE(service_->reload());
    EXPECT_EQ(group_of("control"), 4243U);
    EXPECT_EQ(group_of("m.sock"), 4244U);
    next_.control.socket.group.reset();
    next_.doors[0].socket.group.reset();
    ASSERT_TRUE(service_->reload());
    EXPECT_EQ(group_of("control"), ::getegid());
    EXPECT_EQ(group_of("m.sock"), ::getegid());
}

/// Another user to the kernel, for this thread and as long as it lives; only root can become one.
class AsUser {
public:
    explicit AsUser(std::uint32_t id) { GM_CHECK(::syscall(SYS_setresuid, -1, id, -1) == 0); }
    AsUser(const AsUser&) = delete;
    AsUser& operator=(const AsUser&) = delete;
    ~AsUser() { GM_CHECK(::syscall(SYS_setresuid, -1, 0, -1) == 0); }
};

TEST_F(Reload, AToolIsWhoItWouldBeFromHereOn) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
    std::filesystem::permissions(folder_.path(), std::filesystem::perms{0755});
    constexpr std::uint32_t somebody = 4242;
    constexpr std::uint32_t helper = 4243;
    next_.control.operators = {helper};
    next_.control.socket.mode = 0666;
    next_.vms[0].match.user = somebody;
    next_.vms.push_back(vm("boxed", {{.verdict = Verdict::allow, .pattern = "*"}}));
    next_.vms[1].socket = ListenOptions{.path = folder_.path_of("office"), .mode = 0666};
    next_.doors.pop_back();
    ASSERT_TRUE(service_->reload());
    std::vector<UnixStream> tools;
    std::vector<Fd> held;
    const auto attach = [&](std::uint32_t uid, const std::string& path) {
        {
            const AsUser user{uid};
            tools.push_back(UnixStream::connect(folder_.path_of(path)).value());
        }
        const std::string line =
            control::encode_request({.id = 1, .call = "share.attach", .arguments = to_json(NamedCall{"m"})});
        ASSERT_TRUE(tools.back().send(std::as_bytes(std::span{line})));
        turn();
        std::array<std::byte, 4096> buffer{};
        auto received = tools.back().receive(buffer).value();
        ASSERT_TRUE(received);
        ASSERT_EQ(received->fds.size(), 1U);
        held.push_back(std::move(received->fds[0]));
    };
    attach(helper, "control");
    attach(somebody, "control");
    attach(somebody, "office");
    const auto revoked = [&] {
        std::vector<std::pair<std::uint32_t, std::string>> who;
        const ShareStatus status = status_of("m");
        EXPECT_EQ(status.peers.size(), 3U);
        for (const PeerStatus& peer : status.peers)
            if (peer.is_revoked) who.emplace_back(peer.uid, peer.vm);
        std::ranges::sort(who);
        return who;
    };
    using Who = std::vector<std::pair<std::uint32_t, std::string>>;
    EXPECT_EQ(revoked(), Who{});
    const ServiceConfig before = next_;

    next_.control.operators.clear();
    ASSERT_TRUE(service_->reload());
    EXPECT_EQ(revoked(), (Who{{helper, ""}})) << "who is no operator any more";
    next_ = before;
    next_.vms[0].match.user = somebody + 100;
    ASSERT_TRUE(service_->reload());
    EXPECT_EQ(revoked(), (Who{{somebody, "linux"}})) << "whom the 'who' does not fit any more";
    next_ = before;
    next_.vms[1].match.user = somebody + 100;
    ASSERT_TRUE(service_->reload());
    EXPECT_EQ(revoked(), (Who{{somebody, "boxed"}})) << "whom the 'who' of a VM's own socket does not fit";
    next_ = before;
    next_.vms[0].rules.clear();
    next_.vms[0].rules = {{.verdict = Verdict::deny, .pattern = "*"}};
    ASSERT_TRUE(service_->reload());
    EXPECT_EQ(revoked(), (Who{{somebody, "linux"}}));
    next_ = before;
    ASSERT_TRUE(service_->reload());
    EXPECT_EQ(revoked(), Who{});
}

TEST_F(Reload, WithAnySystemCallFailingIsWholeOrNothing) {
    const auto peer = join("linux.sock");
    const ServiceConfig before = next_;
    bool has_gone_well = false;
    std::uint64_t nth = 0;
    for (; nth < 200 && !has_gone_well; ++nth) {
        SCOPED_TRACE(::testing::Message() << "call " << nth);
        next_.shares = {before.shares[0], share("n")};
        next_.doors = {before.doors[1], door("n", {}, "n.sock")};
        Result<std::vector<std::string>> changes = Error{Errc::unavailable, "not tried"};
        bool has_fired = false;
        {
            FaultInjector injector{nth};
            changes = service_->reload();
            has_fired = injector.has_fired();
        }
        has_gone_well = !has_fired;
        if (changes) {
            EXPECT_EQ(shares().size(), 2U);
            EXPECT_TRUE(join("n.sock"));
            EXPECT_FALSE(Client::connect(folder_.path_of("m.sock")));
        } else {
            EXPECT_TRUE(has_fired);
            EXPECT_EQ(shares().size(), 1U);
            EXPECT_FALSE(Client::connect(folder_.path_of("n.sock")));
            EXPECT_TRUE(join("m.sock"));
        }
        turn();
        EXPECT_EQ(status_of("m").peers.size(), 1U) << "who was there is there";
        next_ = before;
        ASSERT_TRUE(service_->reload());
        turn();
    }
    EXPECT_GT(nth, 10U);
    EXPECT_TRUE(has_gone_well);
}

}  // namespace
}  // namespace guestmem::share
