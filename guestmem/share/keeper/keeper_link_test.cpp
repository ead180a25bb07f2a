// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/keeper/keeper_link.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "guestmem/share/keeper/testing/keeper_fixtures.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/resources.hpp"

namespace guestmem::share {
namespace {

using testing::Bells;
using testing::eventually;
using ::testing::HasSubstr;
using testing::in_child;
using ::testing::IsEmpty;
using testing::KeeperProcess;
using testing::Resources;
using testing::TempFolder;

constexpr std::chrono::seconds patience{20};

Inheritance join(const std::string& path) {
    return join_keeper({.path = path, .patience = patience}).value();
}

TEST(JoinKeeper, StartsOneWhereNoneIsAndFindsItAgain) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const Bells bells{5};
    std::string name;
    {
        const Inheritance first = join(path);
        EXPECT_THAT(first.kept, IsEmpty());
        name = first.keeper->describe();
        EXPECT_THAT(name, HasSubstr("keeper (pid "));
        ASSERT_TRUE(first.keeper->keep(bells.requests()));
    }
    const Inheritance second = join(path);
    EXPECT_EQ(second.keeper->describe(), name);
    EXPECT_TRUE(bells.are(second.kept));
    EXPECT_TRUE(second.keeper->end());
}

TEST(JoinKeeper, WaitsForTheOneBefore) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const KeeperProcess keeper{path};
    auto first = std::make_unique<Inheritance>(join(path));
    const auto refused = join_keeper({.path = path, .patience = std::chrono::milliseconds{50}});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::busy);
    EXPECT_THAT(refused.error().message(), HasSubstr("it serves process " + std::to_string(::getpid())));
    std::thread later{[&] { first.reset(); }};
    EXPECT_TRUE(join_keeper({.path = path, .patience = patience}));
    later.join();
}

TEST(JoinKeeper, DoesNotBelieveAnotherUsersKeeper) {
    if (::geteuid() != 0) GTEST_SKIP() << "SKIPPED: acting as another user needs root";
    const TempFolder folder;
    ASSERT_EQ(::chmod(folder.path().c_str(), 0777), 0);
    const std::string path = folder.path_of("keeper");
    const pid_t child = ::fork();
    if (child == 0) {
        if (::setresuid(4242, 4242, 4242) != 0) ::_exit(1);
        auto listener = SeqpacketListener::create(path);
        if (!listener) ::_exit(2);
        const EventFd never = EventFd::create().value();
        ::_exit(run_keeper(std::move(*listener), {.path = path}, never.view()) ? 0 : 3);
    }
    ASSERT_TRUE(eventually([&] { return SeqpacketStream::connect(path).has_value(); }));
    const auto refused = join_keeper({.path = path, .patience = patience});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::permission_denied);
    EXPECT_THAT(refused.error().message(), HasSubstr("of user 4242 listens there"));
    EXPECT_TRUE(join_keeper({.path = path, .users = {4242}, .patience = patience}))
        << "a user that was named";
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
}

TEST(JoinKeeper, OfAStoppedOneIsAnErrorInTime) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const KeeperProcess keeper{path};
    keeper.signal(SIGSTOP);
    const auto late = join_keeper({.path = path, .patience = std::chrono::milliseconds{100}});
    ASSERT_FALSE(late);
    EXPECT_EQ(late.error().code(), Errc::timed_out);
    keeper.signal(SIGCONT);
    EXPECT_TRUE(join_keeper({.path = path, .patience = patience}));
}

TEST(JoinKeeper, RefusesAKeeperOfALaterVersion) {
    std::vector<KeptFd> kept;
    auto [again, keeper] = SeqpacketStream::pair().value();
    ASSERT_TRUE(keeper.send(encode({.verb = KeeperVerb::welcome, .values = {keeper_version + 1, 0, 10}})));
    const auto refused = KeeperLink::create(std::move(again), {.path = "x", .patience = patience}, kept);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::unsupported);
    EXPECT_THAT(refused.error().message(), HasSubstr("speaks version 2, this program version 1"));
}

/// What create() says to a keeper that has sent these messages, each with so many descriptors.
Result<std::unique_ptr<KeeperLink>> hear(const std::vector<std::pair<KeeperMessage, std::size_t>>& messages) {
    auto [ours, theirs] = SeqpacketStream::pair().value();
    const EventFd bell = EventFd::create().value();
    for (const auto& [message, count] : messages) {
        const std::vector<FdView> fds(count, bell.view());
        EXPECT_TRUE(theirs.send(encode(message), fds));
    }
    std::vector<KeptFd> kept;
    return KeeperLink::create(std::move(ours), {.path = "x", .patience = std::chrono::milliseconds{500}},
                              kept);
}

TEST(JoinKeeper, BelievesAKeeperOnlyWhatFitsTogether) {
    const Resources before = Resources::look();
    const KeeperMessage welcome{.verb = KeeperVerb::welcome, .values = {keeper_version, 2, 10}};
    const KeeperMessage two{.verb = KeeperVerb::holding,
                            .keys = {{.kind = KeptKind::bell}, {.kind = KeptKind::memory}}};
    const KeeperMessage same{.verb = KeeperVerb::holding,
                             .keys = {{.kind = KeptKind::bell}, {.kind = KeptKind::bell}}};
    const KeeperMessage none{.verb = KeeperVerb::holding};
    const KeeperMessage other{.verb = KeeperVerb::holding, .keys = {{.kind = KeptKind::sender}}};
    EXPECT_TRUE(hear({{welcome, 0}, {two, 2}, {none, 0}}));
    KeeperMessage many = welcome;
    many.values[1] = 300;
    KeeperMessage huge = welcome;
    huge.values[1] = max_kept_fds + 1;
    const std::vector<std::vector<std::pair<KeeperMessage, std::size_t>>> lies{
        {{none, 0}},
        {{welcome, 1}},
        {{huge, 0}},
        {{welcome, 0}, {two, 1}},
        {{welcome, 0}, {two, 3}},
        {{welcome, 0}, {same, 2}},
        {{welcome, 0}, {none, 0}},
        {{welcome, 0}, {two, 2}, {other, 1}, {none, 0}},
        {{many, 0}, {two, 2}, {none, 0}, {none, 0}},
        {{welcome, 0}, {{.verb = KeeperVerb::done}, 0}},
    };
    for (std::size_t i = 0; i < lies.size(); ++i) {
        const auto refused = hear(lies[i]);
        ASSERT_FALSE(refused) << i;
        EXPECT_EQ(refused.error().code(), Errc::corrupt) << i << ": " << refused.error().message();
    }
    EXPECT_FALSE(hear({{{.verb = KeeperVerb::refused, .status = 13}, 0}}));
    EXPECT_FALSE(hear({})) << "the other end is gone";
    EXPECT_EQ(Resources::look(), before);
}

TEST(KeeperLink, OneDescriptorIsKeptByOneSend) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const Bells bells{1};
    const KeeperProcess keeper{path};
    {
        const Inheritance service = join(path);
        keeper.signal(SIGSTOP);
        ASSERT_TRUE(service.keeper->keep(bells.requests())) << "nobody is waited for";
    }
    keeper.signal(SIGCONT);
    EXPECT_TRUE(bells.are(join(path).kept));
}

TEST(KeeperLink, ForgetsAndReplaces) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const KeeperProcess keeper{path};
    const Bells old{3};
    const Bells fresh{2};
    {
        const Inheritance service = join(path);
        ASSERT_TRUE(service.keeper->keep(old.requests()));
        ASSERT_TRUE(service.keeper->forget(std::array{old.keys()[2], KeptKey{.kind = KeptKind::bell}}));
        ASSERT_TRUE(service.keeper->keep(fresh.requests()));
        ASSERT_TRUE(service.keeper->sync());
    }
    EXPECT_TRUE(fresh.are(join(path).kept));
}

TEST(KeeperLink, AfterSyncWhatWasForgottenIsClosed) {
    const TempFolder folder;
    const KeeperProcess keeper{folder.path_of("keeper")};
    const Inheritance service = join(folder.path_of("keeper"));
    auto [ours, theirs] = SeqpacketStream::pair().value();
    const KeptKey key{.kind = KeptKind::connection, .share = 1, .index = 1};
    ASSERT_TRUE(service.keeper->keep(std::array{KeepRequest{.key = key, .fd = theirs.view()}}));
    ASSERT_TRUE(service.keeper->sync());
    theirs = SeqpacketStream{};
    EXPECT_FALSE(ours.is_hung_up()) << "the keeper has it";
    ASSERT_TRUE(service.keeper->forget(std::array{key}));
    ASSERT_TRUE(service.keeper->sync());
    EXPECT_TRUE(ours.is_hung_up());
}

TEST(KeeperLink, OneMoreThanTheKeeperCanHaveIsAnErrorBeforeItIsSent) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const KeeperProcess keeper{KeeperProcessOptions{.path = path, .capacity = 4}};
    const Bells bells{4};
    const Bells more{1, 4};
    {
        const Inheritance service = join(path);
        ASSERT_TRUE(service.keeper->keep(bells.requests()));
        const auto full = service.keeper->keep(more.requests());
        ASSERT_FALSE(full);
        EXPECT_EQ(full.error().code(), Errc::exhausted);
        EXPECT_THAT(full.error().message(), HasSubstr("holds 4 descriptors of at most 4; 1 more do not fit"));
        EXPECT_TRUE(service.keeper->keep(bells.requests())) << "what it has may be replaced";
        ASSERT_TRUE(service.keeper->forget(std::array{bells.keys()[0]}));
        EXPECT_TRUE(service.keeper->keep(more.requests()));
        EXPECT_TRUE(service.keeper->sync());
    }
    EXPECT_EQ(join(path).kept.size(), 4U);
}

TEST(KeeperLink, ToAStoppedKeeperIsAnErrorInTimeAndGoesOnAfter) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const KeeperProcess keeper{path};
    const Inheritance service =
        join_keeper({.path = path, .patience = patience, .call_patience = std::chrono::milliseconds{100}})
            .value();
    const Bells bells{1};
    EXPECT_TRUE(eventually([&] { return service.keeper->is_answering().value(); }, patience));
    keeper.signal(SIGSTOP);

    const auto begin = std::chrono::steady_clock::now();
    EXPECT_EQ(service.keeper->sync_soon().error().code(), Errc::timed_out);
    EXPECT_FALSE(service.keeper->is_answering().value());
    // The queue of a socket takes about 280 packets.
    std::optional<Error> failure;
    for (int count = 0; !failure && count < 100'000; ++count)
        if (auto kept = service.keeper->keep(bells.requests()); !kept) failure = kept.error();
    ASSERT_TRUE(failure);
    EXPECT_EQ(failure->code(), Errc::timed_out);
    EXPECT_THAT(failure->message(), HasSubstr("is it stopped?"));
    EXPECT_EQ(service.keeper->forget(bells.keys()).error().code(), Errc::timed_out);
    EXPECT_FALSE(service.keeper->is_answering().value()) << "full, and not waited for";
    EXPECT_LT(std::chrono::steady_clock::now() - begin, patience) << "only sync() has its patience";
    EXPECT_FALSE(poll_readable(service.keeper->gone(), 0).value());

    keeper.signal(SIGCONT);
    EXPECT_TRUE(eventually([&] { return service.keeper->is_answering().value(); }, patience));
    EXPECT_TRUE(eventually([&] { return service.keeper->sync().has_value(); }, patience));
    EXPECT_FALSE(poll_readable(service.keeper->gone(), 0).value()) << "late answers are no end";
}

TEST(KeeperLink, ACallBetweenDoesNotTakeTheAnswerOfTheQuestionAway) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const KeeperProcess keeper{path};
    const Inheritance service = join(path);
    keeper.signal(SIGSTOP);
    EXPECT_FALSE(service.keeper->is_answering().value());
    keeper.signal(SIGCONT);
    ASSERT_TRUE(service.keeper->sync());
    EXPECT_TRUE(service.keeper->is_answering().value());
}

TEST(KeeperLink, DescriptorsInFlightAtTheLimitAreNotWaitedForLong) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const KeeperProcess keeper{path};
    const Bells bells{1};
    const Inheritance service = join(path);
    {
        const FaultInjector injector{
            0, {.only = SysCall::sendmsg, .os_error = ETOOMANYREFS, .repeat = 1'000'000}};
        const auto begin = std::chrono::steady_clock::now();
        const auto refused = service.keeper->keep(bells.requests());
        EXPECT_LT(std::chrono::steady_clock::now() - begin, patience / 2) << "not for its patience";
        ASSERT_FALSE(refused);
        EXPECT_EQ(refused.error().code(), Errc::timed_out);
        EXPECT_EQ(refused.error().os_error(), ETOOMANYREFS);
        EXPECT_THAT(refused.error().message(), HasSubstr("RLIMIT_NOFILE is"));
        EXPECT_FALSE(service.keeper->is_answering().value()) << "it cannot be asked";
    }
    ASSERT_TRUE(service.keeper->keep(bells.requests()));
    EXPECT_TRUE(service.keeper->sync()) << "the connection is as it was";
}

TEST(KeeperLink, RoomIsAskedForBeforeAnythingIsSent) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const KeeperProcess keeper{KeeperProcessOptions{.path = path, .capacity = 4}};
    const Bells bells{3};
    const Inheritance service = join(path);
    ASSERT_TRUE(service.keeper->keep(bells.requests()));
    EXPECT_TRUE(service.keeper->check_room(1));
    const auto full = service.keeper->check_room(2);
    ASSERT_FALSE(full);
    EXPECT_EQ(full.error().code(), Errc::exhausted);
    EXPECT_EQ(full.error().os_error(), ENOSPC);
    ASSERT_TRUE(service.keeper->forget(std::array{bells.keys()[0]}));
    EXPECT_TRUE(service.keeper->check_room(2));
}

TEST(KeeperLink, ForgetsTheRestThatWasNotKeptAgain) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const KeeperProcess keeper{path};
    const Bells bells{3};
    const Bells others{2, 4};
    {
        const Inheritance first = join(path);
        ASSERT_TRUE(first.keeper->keep(bells.requests()));
        ASSERT_TRUE(first.keeper->keep(others.requests()));
        ASSERT_TRUE(first.keeper->forget_rest()) << "all of it was kept by this one";
    }
    {
        const Inheritance second = join(path);
        ASSERT_EQ(second.kept.size(), 5U);
        ASSERT_TRUE(second.keeper->keep(bells.requests()));
        ASSERT_TRUE(second.keeper->forget_rest());
    }
    EXPECT_TRUE(bells.are(join(path).kept));
}

TEST(KeeperLink, SaysWhenTheKeeperIsGoneAndANewOneGetsEverything) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const Bells bells{3};
    KeeperProcess keeper{path};
    Inheritance service = join(path);
    ASSERT_TRUE(service.keeper->keep(bells.requests()));
    ASSERT_FALSE(poll_readable(service.keeper->gone(), 0).value());

    ASSERT_TRUE(keeper.end(SIGKILL));

    EXPECT_TRUE(poll_readable(service.keeper->gone(), 20'000).value());
    EXPECT_EQ(service.keeper->keep(bells.requests()).error().code(), Errc::unavailable);
    EXPECT_EQ(service.keeper->sync().error().code(), Errc::unavailable);
    EXPECT_EQ(service.keeper->forget(bells.keys()).error().code(), Errc::unavailable);
    service = join(path);
    ASSERT_TRUE(service.keeper->keep(bells.requests()));
    service.keeper.reset();
    service = join(path);
    EXPECT_TRUE(bells.are(service.kept));
    EXPECT_TRUE(service.keeper->end());
}

TEST(KeeperLink, EndLeavesNeitherProcessNorFile) {
    const TempFolder folder;
    const KeeperProcess keeper{folder.path_of("keeper")};
    const Bells bells{3};
    const Inheritance service = join(folder.path_of("keeper"));
    ASSERT_TRUE(service.keeper->keep(bells.requests()));
    ASSERT_TRUE(service.keeper->end());
    EXPECT_THAT(folder.entries(), IsEmpty());
    EXPECT_TRUE(eventually([&] { return !keeper.is_alive(); }));
    EXPECT_TRUE(service.keeper->end()) << "once more is what was wanted";
}

TEST(KeeperLink, WhateverFailsNoDescriptorIsLeft) {
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const KeeperProcess keeper{path};
    const Bells bells{300};
    const Bells one{1, 9};
    const testing::FaultLoopOptions survivable{.faults = testing::FaultsAre::survivable};
    // A join that the other end seems to have left is tried again.
    const auto count = testing::for_each_fault(
        survivable,
        [&]() -> Result<void> {
            const Inheritance service = GM_TRY(join_keeper({.path = path, .patience = patience}));
            GM_TRY(service.keeper->keep(bells.requests()));
            GM_TRY(service.keeper->keep(one.requests()));
            GM_TRY(service.keeper->forget(one.keys()));
            GM_TRY(service.keeper->sync());
            return {};
        },
        [] {});
    EXPECT_GE(count, 20U);
    EXPECT_TRUE(bells.are(join(path).kept));
}

/// What a service that is about to be killed has been told, in memory that outlives it.
struct Progress {
    std::uint32_t count_kept = 0;       ///< bells that keep() has returned for
    std::uint32_t count_forgotten = 0;  ///< and forget() with sync()
};

/// A service's life: batches of bells, then single ones, and some are forgotten.
int live(const std::string& path, const Bells& bells, Progress& progress) {
    const auto service = join_keeper({.path = path, .patience = patience});
    if (!service) return 1;
    const auto all = bells.requests();
    const std::span<const KeepRequest> requests{all};
    constexpr std::size_t bulk = 300;
    if (!service->keeper->keep(requests.first(bulk))) return 2;
    progress.count_kept = bulk;
    for (std::size_t i = bulk; i < requests.size(); ++i) {
        if (!service->keeper->keep(requests.subspan(i, 1))) return 3;
        ++progress.count_kept;
    }
    for (std::size_t i = 0; i < 3; ++i) {
        if (!service->keeper->forget(std::array{bells.keys()[i]}) || !service->keeper->sync()) return 4;
        ++progress.count_forgotten;
    }
    return 0;
}

TEST(KeeperLink, KilledAnywhereTheNextOneGetsAllThatWasKept) {
    const TempFolder folder;
    const Bells bells{310};
    void* const memory =
        ::mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(memory, MAP_FAILED);
    auto& progress = *static_cast<Progress*>(memory);
    int status = -SIGKILL;
    std::uint64_t nth = 0;
    for (; status == -SIGKILL && nth < 500; ++nth) {
        SCOPED_TRACE(nth);
        const std::string path = folder.path_of("keeper." + std::to_string(nth));
        const KeeperProcess keeper{path};
        progress = {};
        status = in_child([&] {
            const FaultInjector injector{nth, {.is_deadly = true}};
            return live(path, bells, progress);
        });
        const Inheritance next = join(path);
        std::map<KeptKey, bool> is_held;
        for (const KeptFd& one : next.kept) is_held[one.key] = bells.has(one);
        for (std::size_t i = progress.count_forgotten + 1; i < progress.count_kept; ++i)
            EXPECT_TRUE(is_held[bells.keys()[i]]) << "bell " << i << " is lost";
        for (std::size_t i = 0; i < progress.count_forgotten; ++i)
            EXPECT_FALSE(is_held.contains(bells.keys()[i])) << "bell " << i << " came back";
    }
    ::munmap(memory, sizeof(Progress));
    EXPECT_EQ(status, 0);
    EXPECT_GT(nth, 20U);
}

TEST(KeeperLink, FiveThousandDescriptorsAreTakenOverInOneJoin) {
    if (descriptor_limit() < 11'000) raise_descriptor_limit();
    if (descriptor_limit() < 11'000)
        GTEST_SKIP() << "SKIPPED: needs 11000 descriptors, the limit is " << descriptor_limit();
    const TempFolder folder;
    const std::string path = folder.path_of("keeper");
    const KeeperProcess keeper{path};
    const Bells bells{5002};
    ASSERT_TRUE(join(path).keeper->keep(bells.requests()));

    const auto begin = std::chrono::steady_clock::now();
    const Inheritance next = join(path);
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - begin;

    std::printf("5002 descriptors in %.2f ms\n", time.count());
    std::fflush(stdout);
    EXPECT_TRUE(bells.are(next.kept));
}

}  // namespace
}  // namespace guestmem::share
