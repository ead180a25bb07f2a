// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/service_state.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "guestmem/control/wire.hpp"
#include "guestmem/share/calls.hpp"
#include "guestmem/share/ivshmem/client.hpp"
#include "guestmem/share/keeper/testing/keeper_fixtures.hpp"
#include "guestmem/share/pair_bells.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"

namespace guestmem::share {
namespace {

using testing::eventually;
using ::testing::HasSubstr;
using testing::KeeperProcess;
using ::testing::Not;
using testing::TempFolder;

constexpr std::chrono::seconds patience{30};

class Lines final : public Log {
public:
    void write(LogLevel, std::string_view text) override { lines_ += std::string{text} + "\n"; }
    [[nodiscard]] const std::string& text() const { return lines_; }

private:
    std::string lines_;
};

/// A service with a keeper, one instance after the other in this process.
class ServiceLife : public ::testing::Test {
protected:
    [[nodiscard]] ServiceConfig config() const {
        QuickOptions options;
        options.share.name = "m";
        options.share.size_bytes = 8192;
        options.share.vectors = 2;
        options.share.slots = 3;
        options.share.ids = ids_;
        options.socket = path_of("s");
        ServiceConfig made = quick_config(options).value();
        if (edit_) edit_(made);
        return made;
    }
    [[nodiscard]] std::string path_of(const char* name) const { return folder_.path_of(name); }
    [[nodiscard]] Inheritance join() const {
        return join_keeper({.path = path_of("k"),
                            .patience = join_patience_,
                            .call_patience = std::chrono::milliseconds{100}})
            .value();
    }
    [[nodiscard]] Result<Service> make(Inheritance inheritance) {
        ServiceOptions options;
        options.inheritance = std::move(inheritance);
        return Service::create(loop_, log_, config(), std::move(options));
    }
    void start(Inheritance inheritance) { service_.emplace(make(std::move(inheritance)).value()); }
    /// Ends as by a kill: everything stays with the keeper.
    [[nodiscard]] Inheritance end() {
        EXPECT_TRUE(service_->retire());
        service_.reset();
        return join();
    }
    bool turn_until(const std::function<bool()>& is_so) {
        return eventually(
            [&] {
                EXPECT_TRUE(loop_.run_once(1));
                return is_so();
            },
            patience);
    }
    [[nodiscard]] Result<Client> join_share() {
        Client client = GM_TRY(Client::connect(path_of("s")));
        std::optional<Error> refusal;
        EXPECT_TRUE(turn_until([&] {
            const auto joined = client.join(2, 0);
            if (joined) return true;
            if (joined.error().code() != Errc::timed_out) refusal = joined.error();
            return refusal.has_value();
        }));
        if (refusal) return std::move(*refusal);
        return client;
    }

    TempFolder folder_;
    std::chrono::milliseconds join_patience_ = patience;
    IdPolicy ids_ = IdPolicy::stable;
    std::function<void(ServiceConfig&)> edit_;
    Lines log_;
    EventLoop loop_ = EventLoop::create().value();
    std::optional<Service> service_;
};

std::size_t count_of(const Inheritance& inheritance, KeptKind kind) {
    return static_cast<std::size_t>(
        std::ranges::count_if(inheritance.kept, [kind](const KeptFd& one) { return one.key.kind == kind; }));
}

/// What an instance has left, to be read and falsified. It counts as an instance itself.
Journal journal_of(const Inheritance& inheritance) {
    const auto found = std::ranges::find(inheritance.kept, KeptKind::journal,
                                         [](const KeptFd& one) { return one.key.kind; });
    return Journal::adopt(found->fd.duplicate().value()).value();
}

void give_door_to(ServiceConfig& config, const UsageLimits& limits) {
    VmConfig vm;
    vm.name = "linux";
    vm.rules = {{.verdict = Verdict::allow, .pattern = "*"}};
    vm.limits = limits;
    config.vms.push_back(vm);
    config.doors[0].vm = "linux";
}

TEST_F(ServiceLife, AShareThatWasGettingItsPagesIsClearedUnlessItIsKept) {
    const KeeperProcess keeper{path_of("k")};
    for (const bool is_kept : {true, false}) {
        edit_ = [&](ServiceConfig& config) { config.shares[0].is_kept = is_kept; };
        start(join());
        {
            const Client client = join_share().value();
            client.map(MapAccess::read_write)->bytes()[8191] = std::byte{77};
        }
        Inheritance left = end();
        journal_of(left).shares().at(0)->stage.store(ShareStage::blank);
        start(std::move(left));
        const auto client = join_share();
        ASSERT_TRUE(client);
        EXPECT_EQ(client->map(MapAccess::read_only)->bytes()[8191], is_kept ? std::byte{77} : std::byte{0});
        service_.reset();
    }
}

TEST_F(ServiceLife, ATakeOverTakesNoTimeForThePagesOfSharesThatTheFileHasChanged) {
    const KeeperProcess keeper{path_of("k")};
    start(join());
    Inheritance left = end();
    Journal journal = journal_of(left);
    edit_ = [](ServiceConfig& config) {
        config.shares[0].size_bytes = 64 << 20;
        config.shares.push_back(config.shares[0]);
        config.shares[1].name = "n";
    };
    start(std::move(left));
    std::vector<ShareRecord*> records = journal.shares();
    ASSERT_EQ(records.size(), 2U);
    for (const ShareRecord* const record : records) {
        EXPECT_EQ(record->size_bytes, 64U << 20);
        EXPECT_EQ(record->stage.load(), ShareStage::blank) << record->name.get();
    }
    EXPECT_TRUE(join_share()) << "when its pages are there";
}

TEST_F(ServiceLife, WhoIsGreetedAgainIsOfTheVmThatItsSocketIsOf) {
    const KeeperProcess keeper{path_of("k")};
    start(join());
    const auto client = join_share();
    ASSERT_TRUE(client);
    Inheritance left = end();
    {
        Journal journal = journal_of(left);
        EXPECT_EQ(journal.connections().at(0)->vm.get(), "");
        journal.connections().at(0)->stage.store(ConnectionStage::greeted);
    }
    edit_ = [](ServiceConfig& config) { give_door_to(config, {}); };
    start(std::move(left));
    EXPECT_EQ(service_->counts().sessions, 1U);
    left = end();
    EXPECT_EQ(journal_of(left).connections().at(0)->vm.get(), "linux") << "the next instance asks its rules";
}

TEST_F(ServiceLife, WhoIsTakenOverHasTheQueueOfItsVm) {
    const KeeperProcess keeper{path_of("k")};
    ids_ = IdPolicy::classic;
    edit_ = [](ServiceConfig& config) { give_door_to(config, {.queued_messages = 8}); };
    start(join());
    const auto mute = join_share();
    ASSERT_TRUE(mute);
    start(end());
    EXPECT_EQ(service_->counts().sessions, 1U);
    // A visit is three messages, and a socket takes about a dozen.
    for (int visit = 0; visit < 60; ++visit) {
        ASSERT_TRUE(join_share());
        ASSERT_TRUE(turn_until([&] { return service_->counts().sessions <= 1; }));
    }
    EXPECT_EQ(service_->counts().sessions, 0U);
    EXPECT_THAT(log_.text(), HasSubstr("it does not read"));
}

TEST_F(ServiceLife, WhatAShareThatCannotBeTakenOverHadIsNotKeptForEver) {
    const KeeperProcess keeper{path_of("k")};
    start(join());
    Inheritance left = end();
    EXPECT_EQ(count_of(left, KeptKind::doorbell), 6U);
    std::erase_if(left.kept,
                  [](const KeptFd& one) { return one.key.kind == KeptKind::doorbell && one.key.index == 4; });
    start(std::move(left));
    EXPECT_THAT(log_.text(), HasSubstr("doorbell of id 2 vector 0 is missing; it is lost with its peers"));

    const Inheritance next = end();
    std::set<std::uint32_t> numbers;
    for (const KeptFd& one : next.kept)
        if (one.key.kind == KeptKind::memory) numbers.insert(one.key.share);
    EXPECT_EQ(numbers.size(), 1U) << "of the share that was made anew";
    EXPECT_EQ(count_of(next, KeptKind::doorbell), 6U);
    EXPECT_EQ(count_of(next, KeptKind::presence), 1U);
    EXPECT_EQ(count_of(next, KeptKind::sender), 3U);
}

TEST_F(ServiceLife, ASocketWhoseFileIsGoneIsMadeAnew) {
    const KeeperProcess keeper{path_of("k")};
    start(join());
    Inheritance left = end();
    ASSERT_EQ(::unlink(path_of("s").c_str()), 0);
    start(std::move(left));
    EXPECT_THAT(log_.text(), HasSubstr("socket " + path_of("s") + ": its file is gone"));
    EXPECT_TRUE(join_share());
    const Inheritance next = end();
    EXPECT_EQ(count_of(next, KeptKind::listener), config().doors.size() + 1)
        << "the one that nobody reaches is forgotten";
}

TEST_F(ServiceLife, ASocketInWhosePlaceAnotherOneStandsIsMadeAnew) {
    const KeeperProcess keeper{path_of("k")};
    start(join());
    Inheritance left = end();
    ASSERT_EQ(std::rename(path_of("s").c_str(), path_of("aside").c_str()), 0);
    {
        UnixListener stale = UnixListener::create({.path = path_of("s")}).value();
        stale.leave_file();
    }
    start(std::move(left));
    if (log_.text().find("somebody has put another file there") == std::string::npos)
        GTEST_SKIP() << "SKIPPED: this kernel does not tell a socket's file";
    EXPECT_TRUE(join_share());
    EXPECT_EQ(::access(path_of("aside").c_str(), F_OK), 0) << "it is somebody's";
}

TEST_F(ServiceLife, AFullKeeperIsAReasonToRefuseANewcomer) {
    // Journal, listeners, memory, presence, three sender pages, six doorbells; and one client.
    const std::size_t capacity = 1 + config().doors.size() + 1 + 2 + 3 + 6 + 1;
    const KeeperProcess keeper{KeeperProcessOptions{.path = path_of("k"), .capacity = capacity}};
    start(join());
    const auto first = join_share();
    ASSERT_TRUE(first);
    const auto second = join_share();
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().os_error(), ENOSPC);
    EXPECT_THAT(log_.text(), HasSubstr(fmt::format("of at most {}; 1 more do not fit", capacity)));
    EXPECT_EQ(service_->counts().sessions, 1U);
    EXPECT_EQ(end().kept.size(), capacity);
}

TEST_F(ServiceLife, ASessionNeedsRoomForItsBellToo) {
    // As above; a session is a connection and a bell, another tool a connection.
    const std::size_t capacity = 1 + config().doors.size() + 1 + 2 + 3 + 6 + 1;
    const KeeperProcess keeper{KeeperProcessOptions{.path = path_of("k"), .capacity = capacity}};
    start(join());
    const UnixStream tool = UnixStream::connect(config().control.socket.path).value();
    const auto attach = [&](bool is_session) {
        AttachCall call;
        call.share = "m";
        call.is_session = is_session;
        const std::string line =
            control::encode_request({.id = 1, .call = "share.attach", .arguments = to_json(call)});
        EXPECT_TRUE(tool.send(std::as_bytes(std::span{line})));
        EXPECT_TRUE(turn_until([&] { return tool.wait_readable(0).value(); }));
        std::string said(4096, ' ');
        const auto received = tool.receive(std::as_writable_bytes(std::span{said})).value();
        said.resize(received->count_bytes);
        return control::decode_answer(said).value();
    };
    const auto refused = attach(true).error;
    ASSERT_TRUE(refused);
    EXPECT_EQ(refused->os_error(), ENOSPC);
    EXPECT_FALSE(attach(false).error);
}

TEST_F(ServiceLife, WithClassicIdsTheDoorbellsOfANewcomerNeedRoomToo) {
    ids_ = IdPolicy::classic;
    // Journal, listeners, memory, presence; a client is a connection and two doorbells.
    const std::size_t capacity = 1 + config().doors.size() + 1 + 2 + 3 + 2;
    const KeeperProcess keeper{KeeperProcessOptions{.path = path_of("k"), .capacity = capacity}};
    start(join());
    const auto first = join_share();
    ASSERT_TRUE(first);
    const auto second = join_share();
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().os_error(), ENOSPC);
}

TEST_F(ServiceLife, AShareThatTheKeeperHasNoRoomForIsRefused) {
    const KeeperProcess keeper{KeeperProcessOptions{.path = path_of("k"), .capacity = 8}};
    const auto refused = make(join());
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().os_error(), ENOSPC);
    EXPECT_THAT(refused.error().message(), HasSubstr("share 'm': keeper (pid "));
    EXPECT_THAT(refused.error().message(), HasSubstr("of at most 8; 11 more do not fit"));
}

TEST_F(ServiceLife, AShareThatIsRefusedLeavesNoNameOfItsMemory) {
    const std::string name = fmt::format("guestmem-refused-{}", ::getpid());
    edit_ = [&](ServiceConfig& config) {
        config.shares[0].backing = BackingKind::shm;
        config.shares[0].path = "/" + name;
    };
    const std::string file = "/dev/shm/" + name;
    {
        const KeeperProcess keeper{KeeperProcessOptions{.path = path_of("k"), .capacity = 8}};
        const auto refused = make(join());
        ASSERT_FALSE(refused);
        EXPECT_THAT(refused.error().message(), HasSubstr("do not fit"));
        EXPECT_NE(::access(file.c_str(), F_OK), 0);
    }
    // sd-event keeps its timer descriptor once it had a timer: the loop's own, made before the count.
    ASSERT_TRUE(loop_.add_timer(0, [] {}));
    const std::uint64_t count = testing::for_each_fault([&] { return make({}); },
                                                        [&] { EXPECT_NE(::access(file.c_str(), F_OK), 0); });
    EXPECT_GT(count, 30U);
}

TEST_F(ServiceLife, AToolThatIsNobodyAnyMoreDoesNotEndItsHandshake) {
    const KeeperProcess keeper{path_of("k")};
    start(join());
    const auto client = join_share();
    ASSERT_TRUE(client);
    Inheritance left = end();
    {
        Journal journal = journal_of(left);
        ConnectionRecord& record = *journal.connections().at(0);
        record.is_tool = 1;
        record.vm.set("linux");
        record.is_told.store(0);
    }
    edit_ = [](ServiceConfig& config) {
        give_door_to(config, {});
        config.vms[0].match.user = ::geteuid() + 1;
    };
    start(std::move(left));
    EXPECT_EQ(service_->counts().sessions, 0U);
    EXPECT_THAT(log_.text(), HasSubstr("lost its right in the midst of its handshake"));
}

/// Takes nothing, for good, and says so.
class BrokenKeeper final : public Keeper {
public:
    Result<void> keep(std::span<const KeepRequest>) override { return Error{Errc::io, "broken"}; }
    Result<void> forget(std::span<const KeptKey>) override { return {}; }
    Result<void> sync() override { return {}; }
    Result<void> end() override { return {}; }
    [[nodiscard]] Result<void> check_room(std::size_t) const override { return {}; }
    Result<bool> is_answering() override { return true; }
    Result<void> forget_rest() override { return {}; }
    [[nodiscard]] FdView gone() const override { return {}; }
    [[nodiscard]] std::string describe() const override { return "broken keeper"; }
};

TEST_F(ServiceLife, WhoseKeeperHasFailedDoesNotRetire) {
    Inheritance inheritance;
    inheritance.keeper = std::make_unique<BrokenKeeper>();
    start(std::move(inheritance));
    const auto retired = service_->retire();
    ASSERT_FALSE(retired);
    EXPECT_THAT(retired.error().message(), HasSubstr("the broken keeper does not hold what it was given"));
}

TEST_F(ServiceLife, WhileTheKeeperIsStoppedNewcomersAreServedAndKeptAfter) {
    join_patience_ = std::chrono::seconds{1};
    const KeeperProcess keeper{path_of("k")};
    start(join());
    keeper.signal(SIGSTOP);
    // Each comes and goes; the queue of a socket takes about 280 packets of their keys.
    for (int round = 0; round < 300; ++round) {
        ASSERT_TRUE(join_share());
        ASSERT_TRUE(turn_until([&] { return service_->counts().sessions == 0; }));
    }
    std::vector<Client> clients;
    for (int i = 0; i < 3; ++i) {
        auto client = join_share();
        ASSERT_TRUE(client) << client.error().message();
        clients.push_back(std::move(*client));
    }
    EXPECT_FALSE(service_->retire()) << "what came would be lost";

    keeper.signal(SIGCONT);
    ASSERT_TRUE(turn_until([&] { return log_.text().find("holds everything") != std::string::npos; }))
        << "nobody has to ask for it";
    ASSERT_TRUE(turn_until([&] { return service_->retire().has_value(); }));
    service_.reset();
    join_patience_ = patience;
    Inheritance next = join();
    EXPECT_EQ(count_of(next, KeptKind::connection), 3U);
    start(std::move(next));
    EXPECT_EQ(service_->counts().sessions, 3U);
}

TEST_F(ServiceLife, DescriptorsAreCountedWithSessionsAndAnswers) {
    ServiceConfig one = config();
    ServiceConfig two = config();
    two.shares[0].slots = one.shares[0].slots + 1;
    fill_in_limits(one);
    fill_in_limits(two);
    // Two doorbells, a connection, a session's bell, a sender page to write and one to read; doorbells of pairs.
    EXPECT_EQ(descriptors_needed(two) - descriptors_needed(one),
              2U + 1U + 1U + 2U + most_pair_bells(two.shares[0]) - most_pair_bells(one.shares[0]));
    // An answer of seven in place of one with two; and a page more in each of the three others.
    EXPECT_EQ(descriptors_in_answers(two) - descriptors_in_answers(one), (3U + 4U - 2U) + 3U);
}

TEST_F(ServiceLife, ADescriptorLimitThatUnreadAnswersCouldReachIsAWarning) {
    ServiceConfig wanted = config();
    fill_in_limits(wanted);
    rlimit before{};
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
    const auto serve_with = [&](std::uint64_t limit) {
        const rlimit low{limit, before.rlim_max};
        ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
        start({});
        service_.reset();
        ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
    };
    const std::uint64_t most = descriptors_needed(wanted) + descriptors_in_answers(wanted);
    serve_with(most);
    EXPECT_THAT(log_.text(), Not(HasSubstr("stopped reading their answers")));
    serve_with(descriptors_needed(wanted));
    EXPECT_THAT(log_.text(), HasSubstr(fmt::format("at once, {} descriptors would be open", most)));
}

}  // namespace
}  // namespace guestmem::share
