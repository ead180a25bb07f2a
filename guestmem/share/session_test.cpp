// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/session.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <future>

#include "guestmem/share/testing/session_case.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem::share {
namespace {

using guestmem::testing::eventually;
using ::testing::ElementsAre;
using testing::FakeLies;
using testing::FakeService;
using testing::FakeShare;
using testing::ForkedService;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::SessionCase;

using testing::patience_ms;

class ShareSession : public SessionCase {};

TEST_F(ShareSession, AttachesByNameAndKnowsItsPlaceAndItsMemory) {
    serve();
    Session one = attach().value();
    SessionOptions wanted = options();
    wanted.slot = 3;
    wanted.may_create = true;
    wanted.size_bytes = 65'536;
    const Session other = Session::attach(wanted).value();
    EXPECT_EQ(one.id(), 0U);
    EXPECT_EQ(other.id(), 3U);
    EXPECT_EQ(one.facts().vectors, 2U);
    EXPECT_EQ(one.facts().slots, 4U);
    EXPECT_TRUE(one.facts().is_sealed && one.facts().may_notify && !one.facts().is_read_only);
    const Mapping mine = one.map().value();
    const Mapping theirs = other.map().value();
    ASSERT_EQ(mine.bytes().size(), 8192U);
    mine.bytes()[8191] = std::byte{7};
    EXPECT_EQ(theirs.bytes()[8191], std::byte{7});
    const AttachCall asked = in_service([](FakeService& service) { return service.last_call(); });
    EXPECT_EQ(asked.share, "mailbox");
    EXPECT_TRUE(asked.is_session && asked.may_create && !asked.is_read_only);
    EXPECT_EQ(asked.size_bytes, 65'536U);
    EXPECT_EQ(asked.vectors, std::nullopt);
}

TEST_F(ShareSession, KnowsWhoIsThereWithoutAsking) {
    serve();
    Session session = attach().value();
    EXPECT_THAT(session.peers(), IsEmpty());
    EXPECT_FALSE(session.is_present(2));
    const std::uint32_t tenancy = session.tenancy(2);
    const std::uint64_t changes = session.presence_changes();
    in_service([](FakeService& service) { service.show(2, true); });
    EXPECT_THAT(session.peers(), ElementsAre(2));
    EXPECT_TRUE(session.is_present(2));
    EXPECT_EQ(session.tenancy(2), tenancy + 1);
    EXPECT_GT(session.presence_changes(), changes);
    EXPECT_TRUE(is_readable(session.changes_view()));
    EXPECT_TRUE(is_readable(session.view()));
    EXPECT_TRUE(session.refresh().value().has_presence_changed);
    EXPECT_FALSE(is_readable(session.changes_view()));
    EXPECT_FALSE(session.refresh().value().has_any());
    EXPECT_FALSE(session.is_present(4)) << "a slot that the share has not";
}

TEST_F(ShareSession, RingsAndIsRungOnTheVectorsThatItWaitsFor) {
    serve();
    Session one = attach().value();
    Session two = attach().value();
    ASSERT_TRUE(two.ring(0, 1));
    ASSERT_TRUE(two.ring(0, 1));
    EXPECT_FALSE(is_readable(one.vector_view(0)));
    EXPECT_TRUE(is_readable(one.vector_view(1)));
    EXPECT_TRUE(is_readable(one.view()));
    const std::array first{0U};
    EXPECT_TRUE(one.wait({.vectors = first, .timeout_ms = 0}).value().is_empty());
    const WaitOutcome woken = one.wait({.timeout_ms = patience_ms}).value();
    ASSERT_EQ(woken.kicks.size(), 1U);
    EXPECT_EQ(woken.kicks[0].vector, 1U);
    EXPECT_EQ(woken.kicks[0].count, 2U);
    EXPECT_TRUE(one.wait({.timeout_ms = 0}).value().is_empty()) << "taken";
    // Nobody is there; the kick waits.
    ASSERT_TRUE(one.ring(3, 0));
    EXPECT_EQ(in_service([](FakeService& service) { return service.doorbell(3, 0).drain().value(); }), 1U);
    EXPECT_EQ(one.ring(4, 0).error().code(), Errc::not_found);
    EXPECT_EQ(one.ring(1, 2).error().code(), Errc::out_of_range);
    const std::array none{2U};
    EXPECT_EQ(one.wait({.vectors = none, .timeout_ms = 0}).error().code(), Errc::out_of_range);
    EXPECT_FALSE(one.vector_view(2).is_open());
}

TEST_F(ShareSession, ARingThatShallNotWaitsForNoPeerThatFilledItsDoorbell) {
    serve();
    in_service([](FakeService& service) {
        const int bell = service.doorbell(1, 0).view().number();
        const std::uint64_t full = 0xffff'ffff'ffff'fffe;
        EXPECT_EQ(::write(bell, &full, sizeof full), 8);
        EXPECT_EQ(::fcntl(bell, F_SETFL, 0), 0);
    });
    for (const RingStyle style : {RingStyle::never_waits, RingStyle::looks_first}) {
        SessionOptions wanted = options();
        wanted.ring = style;
        Session session = Session::attach(wanted).value();
        const auto rung = session.ring(1, 0);
        EXPECT_TRUE(rung || rung.error().code() == Errc::unsupported);
    }
}

TEST_F(ShareSession, AKickWakesAWaitThatRuns) {
    serve();
    Session one = attach().value();
    Session two = attach().value();
    auto waiting = std::async(std::launch::async, [&] { return one.wait({.timeout_ms = patience_ms}); });
    ASSERT_TRUE(two.ring(0, 0));
    const auto woken = waiting.get();
    ASSERT_TRUE(woken);
    ASSERT_EQ(woken->kicks.size(), 1U);
}

TEST_F(ShareSession, AChangeOfPresenceEndsOnlyAWaitThatAsksForIt) {
    serve();
    Session session = attach().value();
    in_service([](FakeService& service) { service.show(1, true); });
    EXPECT_TRUE(session.wait({.timeout_ms = 0}).value().is_empty());
    EXPECT_TRUE(is_readable(session.changes_view())) << "it is still to be told";
    const WaitOutcome woken = session.wait({.timeout_ms = patience_ms, .is_for_changes = true}).value();
    EXPECT_TRUE(woken.kicks.empty());
    EXPECT_TRUE(woken.changes.has_presence_changed);
}

TEST_F(ShareSession, AReadOnlySessionMapsForReadingAndMayBeTheOnlyOneAllowed) {
    serve({.is_read_only = true});
    EXPECT_EQ(refusal().code(), Errc::permission_denied);
    EXPECT_THAT(refusal().message(), HasSubstr("read-only"));
    SessionOptions wanted = options();
    wanted.access = MapAccess::read_only;
    const Session session = Session::attach(wanted).value();
    EXPECT_TRUE(session.facts().is_read_only);
    const Mapping memory = session.map().value();
    EXPECT_NE(::mprotect(memory.bytes().data(), memory.bytes().size(), PROT_READ | PROT_WRITE), 0);
    EXPECT_TRUE(in_service([](FakeService& service) { return service.last_call().is_read_only; }));
}

TEST_F(ShareSession, WhoMayNotNotifyIsToldSoWhenItRings) {
    serve({.may_notify = false});
    Session session = attach().value();
    EXPECT_EQ(session.ring(1, 0).error().code(), Errc::permission_denied);
    EXPECT_FALSE(session.facts().may_notify);
    EXPECT_THAT(session.peers(), IsEmpty());
}

TEST_F(ShareSession, UnsealedMemoryIsTakenOnlyWhereTheCallerAllowsIt) {
    serve({.is_sealed = false});
    EXPECT_EQ(refusal().code(), Errc::permission_denied);
    EXPECT_THAT(refusal().message(), HasSubstr("not sealed"));
    SessionOptions wanted = options();
    wanted.may_be_unsealed = true;
    Session session = Session::attach(wanted).value();
    EXPECT_FALSE(session.facts().is_sealed);
    EXPECT_TRUE(session.map());
    in_service(
        [](FakeService& service) { EXPECT_EQ(::ftruncate(service.memory().view().number(), 4096), 0); });
    EXPECT_EQ(session.wait_ready(0, 8188, 0).error().code(), Errc::io) << "and not a SIGBUS";
    EXPECT_FALSE(session.map());
}

TEST_F(ShareSession, WaitsUntilAPeerIsThereAndItsReadyWordIsSet) {
    serve();
    Session session = attach().value();
    const Mapping memory = session.map().value();
    EXPECT_FALSE(session.wait_ready(2, std::nullopt, 0).value());
    in_service([](FakeService& service) { service.show(2, true); });
    EXPECT_TRUE(session.wait_ready(2, std::nullopt, patience_ms).value());
    EXPECT_FALSE(session.wait_ready(2, 4096, 0).value());
    memory.bytes()[4096] = std::byte{1};
    EXPECT_TRUE(session.wait_ready(2, 4096, patience_ms).value());
    in_service([](FakeService& service) { service.show(2, false); });
    EXPECT_FALSE(session.wait_ready(2, 4096, 0).value()) << "the word is of a holder that is gone";
    EXPECT_TRUE(session.refresh().value().has_presence_changed) << "wait_ready keeps nothing for itself";
    EXPECT_EQ(session.wait_ready(4, std::nullopt, 0).error().code(), Errc::out_of_range);
    EXPECT_EQ(session.wait_ready(2, 8192, 0).error().code(), Errc::out_of_range);
    EXPECT_EQ(session.wait_ready(2, 4098, 0).error().code(), Errc::out_of_range);
    EXPECT_TRUE(session.wait_ready(0, 8188, 0)) << "the last word";
}

TEST_F(ShareSession, AWaitForAReadyPeerEndsWhenItComes) {
    serve();
    Session one = attach().value();
    const Mapping memory = one.map().value();
    auto waiting = std::async(std::launch::async, [&] { return one.wait_ready(1, 0, patience_ms); });
    const Session two = attach().value();
    const Mapping theirs = two.map().value();
    const std::byte word{1};
    copy_to_shared(theirs.bytes().first(1), std::span{&word, 1});
    EXPECT_TRUE(waiting.get().value());
}

TEST_F(ShareSession, ClassicIdsComeAndGoAsNotices) {
    serve({.slots = 64, .vectors = 1, .is_classic = true});
    Session session = attach().value();
    const EventFd bell = EventFd::create().value();
    in_service([&](FakeService& service) {
        service.say(0, 700, bell.view());
        service.say(0, 701, bell.view());
        service.say(0, 700);
    });
    EXPECT_TRUE(is_readable(session.changes_view()));
    EXPECT_TRUE(session.refresh().value().has_presence_changed);
    EXPECT_THAT(session.peers(), ElementsAre(701));
    EXPECT_TRUE(session.is_present(701));
    EXPECT_FALSE(session.is_present(700));
    bool has_lost = true;
    const std::vector<PeerNotice> notices = session.take_notices(has_lost);
    ASSERT_EQ(notices.size(), 3U);
    EXPECT_TRUE(notices[0].id == 700 && notices[0].has_come);
    EXPECT_TRUE(notices[1].id == 701 && notices[1].has_come);
    EXPECT_TRUE(notices[2].id == 700 && !notices[2].has_come);
    EXPECT_FALSE(has_lost);
    ASSERT_TRUE(session.ring(701, 0));
    EXPECT_EQ(bell.drain().value(), 1U);
    EXPECT_FALSE(session.ring(700, 0));
    EXPECT_TRUE(session.wait_ready(701, std::nullopt, 0).value());
}

TEST_F(ShareSession, KeepsItsLimitOfNoticesAndSaysThatOlderOnesAreGone) {
    serve({.slots = 64, .vectors = 1, .is_classic = true});
    Session session = attach().value();
    const EventFd bell = EventFd::create().value();
    bool has_lost = false;
    for (std::size_t count = 0; count < max_peer_notices / 2; ++count) {
        in_service([&](FakeService& service) {
            service.say(0, 700, bell.view());
            service.say(0, 700);
        });
        ASSERT_TRUE(session.refresh());
    }
    in_service([&](FakeService& service) { service.say(0, 9, bell.view()); });
    ASSERT_TRUE(session.refresh());
    const auto notices = session.take_notices(has_lost);
    EXPECT_EQ(notices.size(), max_peer_notices);
    EXPECT_EQ(notices.back().id, 9U);
    EXPECT_FALSE(notices.front().has_come) << "the first one was dropped";
    EXPECT_TRUE(has_lost);
    EXPECT_THAT(session.take_notices(has_lost), IsEmpty());
    EXPECT_FALSE(has_lost);
}

// The service's end.

TEST_F(ShareSession, AKilledServiceIsNotMissed) {
    serve();
    Session one = attach().value();
    Session two = attach().value();
    in_service([](FakeService& service) { service.kill(); });
    ASSERT_TRUE(one.ring(1, 0));
    EXPECT_EQ(two.wait({.timeout_ms = patience_ms}).value().kicks.size(), 1U);
    EXPECT_FALSE(one.is_lost());
    in_service([](FakeService& service) { service.start(); });
    EXPECT_FALSE(one.refresh().value().is_reattached);
    EXPECT_EQ(one.generation(), 1U);
    const Session three = attach().value();
    EXPECT_EQ(three.id(), 2U);
    EXPECT_THAT(one.peers(), ElementsAre(1, 2));
}

TEST_F(ShareSession, WhoWasCutAttachesAgainToTheSameMemoryInTheNextOperation) {
    serve();
    Session session = attach().value();
    const Mapping memory = session.map().value();
    memory.bytes()[5] = std::byte{9};
    const FdView view = session.view();
    in_service([](FakeService& service) { service.cut(0); });
    EXPECT_TRUE(is_readable(session.changes_view()));
    EXPECT_TRUE(is_readable(session.view()));
    const WaitOutcome woken = session.wait({.timeout_ms = patience_ms}).value();
    EXPECT_TRUE(woken.changes.is_reattached);
    EXPECT_FALSE(woken.changes.is_lost);
    EXPECT_EQ(session.generation(), 2U);
    EXPECT_EQ(session.memory_generation(), 1U);
    EXPECT_EQ(session.view().number(), view.number());
    EXPECT_FALSE(is_readable(session.view()) && !is_readable(session.changes_view()));
    EXPECT_EQ(session.map().value().bytes()[5], std::byte{9});
    Session other = attach().value();
    ASSERT_TRUE(other.ring(session.id(), 1));
    EXPECT_TRUE(is_readable(session.view()));
    EXPECT_EQ(session.wait({.timeout_ms = patience_ms}).value().kicks.size(), 1U);
}

TEST_F(ShareSession, TheNextServiceHasOtherMemoryAndTheMappingOfTheFirstStays) {
    serve();
    Session session = attach().value();
    const Mapping memory = session.map().value();
    memory.bytes()[0] = std::byte{42};
    in_service([](FakeService& service) {
        service.end();
        service.start();
    });
    EXPECT_TRUE(session.refresh().value().is_reattached);
    EXPECT_EQ(session.memory_generation(), 2U);
    EXPECT_EQ(memory.bytes()[0], std::byte{42});
    EXPECT_EQ(session.map().value().bytes()[0], std::byte{0});
}

TEST_F(ShareSession, WithoutAServiceItIsLostAndSaysSoOnceAndGoesOnRinging) {
    serve();
    Session one = attach().value();
    Session two = attach().value();
    in_service([](FakeService& service) { service.end(); });
    EXPECT_TRUE(one.refresh().value().is_lost);
    EXPECT_FALSE(one.refresh().value().has_any());
    EXPECT_TRUE(one.is_lost());
    EXPECT_FALSE(is_readable(one.view())) << "who polls it does not spin";
    EXPECT_EQ(one.reattach().error().code(), Errc::unavailable);
    ASSERT_TRUE(one.ring(1, 0));
    const WaitOutcome woken = two.wait({.timeout_ms = patience_ms}).value();
    EXPECT_EQ(woken.kicks.size(), 1U);
    EXPECT_TRUE(two.wait({.timeout_ms = patience_ms}).value().changes.is_lost);
    EXPECT_TRUE(two.wait({.timeout_ms = 1}).value().is_empty());
    EXPECT_FALSE(two.wait_ready(0, std::nullopt, 1).value()) << "nobody knows who is there";
}

TEST_F(ShareSession, WhoIsKeptBusyByKicksHearsOfALostServiceAllTheSame) {
    serve();
    SessionOptions wanted = options();
    wanted.may_reattach = false;
    Session session = Session::attach(wanted).value();
    ASSERT_TRUE(session.ring(session.id(), 0));
    ASSERT_EQ(session.wait({.timeout_ms = patience_ms}).value().kicks.size(), 1U);
    in_service([](FakeService& service) { service.end(); });
    // The doorbells outlive the service: each wait has its kick.
    EXPECT_TRUE(eventually([&] {
        EXPECT_TRUE(session.ring(session.id(), 0));
        const WaitOutcome woken = session.wait({.timeout_ms = patience_ms}).value();
        EXPECT_NE(woken.kicks.empty(), !woken.changes.is_lost) << "one or the other";
        return woken.changes.is_lost;
    }));
    EXPECT_TRUE(session.is_lost());
}

TEST_F(ShareSession, AWaitFindsTheServiceThatComesBack) {
    serve();
    Session session = attach().value();
    in_service([](FakeService& service) { service.end(); });
    ASSERT_TRUE(session.wait({.timeout_ms = patience_ms}).value().changes.is_lost);
    auto waiting = std::async(std::launch::async, [&] { return session.wait({.timeout_ms = patience_ms}); });
    in_service([](FakeService& service) { service.start(); });
    EXPECT_TRUE(waiting.get().value().changes.is_reattached);
    EXPECT_FALSE(session.is_lost());
}

TEST_F(ShareSession, WhoWantsNoneGetsNoOtherAttachThanTheFirst) {
    serve();
    SessionOptions wanted = options();
    wanted.may_reattach = false;
    Session session = Session::attach(wanted).value();
    in_service([](FakeService& service) { service.cut(0); });
    EXPECT_TRUE(session.refresh().value().is_lost);
    EXPECT_TRUE(session.wait({.timeout_ms = 1}).value().is_empty());
    EXPECT_EQ(session.generation(), 1U);
    ASSERT_TRUE(session.reattach());
    EXPECT_EQ(session.generation(), 2U);
    EXPECT_TRUE(session.refresh().value().is_reattached);
    ASSERT_TRUE(session.reattach()) << "nothing to do";
    EXPECT_EQ(session.generation(), 2U);
}

TEST_F(ShareSession, ASlotThatWasAskedForIsAskedForAgain) {
    serve();
    SessionOptions wanted = options();
    wanted.slot = 2;
    Session session = Session::attach(wanted).value();
    in_service([](FakeService& service) { service.cut(2); });
    ASSERT_TRUE(session.refresh().value().is_reattached);
    EXPECT_EQ(session.id(), 2U);
}

// Broken services.

TEST_F(ShareSession, AStreamThatBreaksTheProtocolLosesTheSessionAndNothingElse) {
    serve();
    SessionOptions wanted = options();
    wanted.may_reattach = false;
    Session session = Session::attach(wanted).value();
    in_service([](FakeService& service) { service.say(0, -77); });
    EXPECT_TRUE(session.refresh().value().is_lost);
    EXPECT_FALSE(is_readable(session.view()));
    EXPECT_TRUE(session.ring(1, 0));
    EXPECT_TRUE(session.map());
}

TEST_F(ShareSession, AReattachThatMeetsALiarLeavesTheSessionAsItWas) {
    serve();
    Session session = attach().value();
    FakeLies lies;
    lies.reply = [](SessionReply& reply) { reply.vectors = 0; };
    lie(lies);
    in_service([](FakeService& service) { service.cut(0); });
    EXPECT_TRUE(session.refresh().value().is_lost);
    EXPECT_EQ(session.facts().vectors, 2U);
    EXPECT_EQ(session.reattach().error().code(), Errc::corrupt);
    EXPECT_TRUE(session.ring(1, 0));
    lie({});
    ASSERT_TRUE(session.reattach());
    EXPECT_TRUE(session.refresh().value().is_reattached);
}

TEST(ShareSessionFaults, ARingIsOneSystemCall) {
    const guestmem::testing::TempFolder folder;
    const std::string path = folder.path_of("control");
    const ForkedService service{{.path = path}};
    const SessionOptions options{.control = path, .share = "mailbox", .timeout_ms = patience_ms};
    ASSERT_TRUE(eventually([&] { return Session::attach(options).has_value(); }));
    Session session = Session::attach(options).value();
    for (const std::uint64_t nth : {0U, 1U}) {
        const FaultInjector injector{nth};
        EXPECT_EQ(session.ring(1, 0).has_value(), nth == 1);
        EXPECT_EQ(injector.has_fired(), nth == 0);
    }
}

/// In their order: each is failed once, and what it belongs to tried again.
template <typename Attempt>
std::vector<SysCall> calls_of(Attempt&& attempt) {
    std::vector<SysCall> calls;
    for (std::uint64_t nth = 0; nth < 100; ++nth) {
        const FaultInjector injector{nth};
        attempt();
        if (!injector.has_fired()) return calls;
        calls.push_back(injector.failed_call());
    }
    ADD_FAILURE() << "there is no end of calls";
    return calls;
}

TEST(ShareSessionFaults, AWaitThatWasRungIsOnePollAndOneRead) {
    const guestmem::testing::TempFolder folder;
    const std::string path = folder.path_of("control");
    const ForkedService service{{.path = path}};
    const SessionOptions options{.control = path, .share = "mailbox", .timeout_ms = patience_ms};
    ASSERT_TRUE(eventually([&] { return Session::attach(options).has_value(); }));
    Session session = Session::attach(options).value();
    const std::array one{0U};
    for (const bool are_all : {false, true}) {
        WaitOptions wanted{.vectors = {}, .timeout_ms = patience_ms};
        if (!are_all) wanted.vectors = one;
        ASSERT_TRUE(session.ring(session.id(), 0));
        const auto calls = calls_of([&] { (void)session.wait(wanted).has_value(); });
        EXPECT_THAT(calls, ElementsAre(SysCall::poll, SysCall::read));
    }
}

TEST(ShareSessionFaults, WhateverFailsInAWaitIsAnErrorOrTriedAgain) {
    const guestmem::testing::TempFolder folder;
    const std::string path = folder.path_of("control");
    const ForkedService service{{.path = path}};
    const SessionOptions options{.control = path, .share = "mailbox", .timeout_ms = patience_ms};
    ASSERT_TRUE(eventually([&] { return Session::attach(options).has_value(); }));
    Session session = Session::attach(options).value();
    for (std::uint64_t nth = 0;; ++nth) {
        ASSERT_TRUE(session.ring(session.id(), 0));
        const FaultInjector injector{nth};
        const auto woken = session.wait({.timeout_ms = patience_ms});
        if (!injector.has_fired()) {
            ASSERT_TRUE(woken);
            break;
        }
        EXPECT_FALSE(woken);
    }
    for (std::uint64_t nth = 0;; ++nth) {
        const FaultInjector injector{nth};
        const auto changes = session.refresh();
        if (!injector.has_fired()) break;
        EXPECT_FALSE(changes);
    }
    EXPECT_FALSE(session.is_lost());
}

TEST(ShareSessionFaults, AServiceThatDiesWithItsStreamsLosesTheSession) {
    const guestmem::testing::TempFolder folder;
    const std::string path = folder.path_of("control");
    std::optional<ForkedService> service{std::in_place, FakeShare{.path = path}};
    const SessionOptions options{.control = path, .share = "mailbox", .timeout_ms = patience_ms};
    ASSERT_TRUE(eventually([&] { return Session::attach(options).has_value(); }));
    Session session = Session::attach(options).value();
    service.reset();
    EXPECT_TRUE(session.wait({.timeout_ms = patience_ms}).value().changes.is_lost);
    service.emplace(FakeShare{.path = path});
    EXPECT_TRUE(eventually([&] { return session.refresh().value().is_reattached; }));
    EXPECT_EQ(session.memory_generation(), 2U);
}

}  // namespace
}  // namespace guestmem::share
