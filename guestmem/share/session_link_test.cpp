// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/session_link.hpp"

#include <gmock/gmock.h>

#include <cerrno>
#include <functional>
#include <vector>

#include "guestmem/share/testing/session_case.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"

namespace guestmem::share {
namespace {

using guestmem::testing::eventually;
using testing::FakeLies;
using testing::FakeService;
using testing::ForkedService;
using ::testing::HasSubstr;
using testing::patience_ms;

class SessionLinkTest : public testing::SessionCase {};

TEST_F(SessionLinkTest, AServiceThatIsKilledInMidHandshakeIsAskedAgain) {
    serve();
    FakeLies lies;
    lies.handshake_messages = 4;
    lies.is_hanging_up_after = true;
    lies.count = 2;
    lie(lies);
    EXPECT_TRUE(attach());
    EXPECT_EQ(in_service([](FakeService& service) { return service.count_attaches(); }), 3U);
}

TEST_F(SessionLinkTest, WithoutAServiceItSaysWhatToStart) {
    EXPECT_EQ(refusal().code(), Errc::unavailable);
    EXPECT_THAT(refusal().message(), HasSubstr("guestmem share serve"));
}

TEST_F(SessionLinkTest, ARefusalIsTheServicesOwn) {
    serve();
    FakeLies lies;
    lies.refusal = Error{Errc::permission_denied, EACCES, "vm 'a' may not attach to share 'mailbox'"};
    lie(lies);
    EXPECT_EQ(refusal().code(), Errc::permission_denied);
    EXPECT_EQ(refusal().os_error(), EACCES);
    EXPECT_THAT(refusal().message(), HasSubstr("vm 'a' may not attach"));
}

TEST_F(SessionLinkTest, AServiceWhoseDescriptorsAreAllOnTheirWayIsAskedAgain) {
    serve();
    FakeLies lies;
    lies.refusal = Error{Errc::exhausted, ETOOMANYREFS, "too many descriptors are in flight"};
    lies.count = 2;
    lie(lies);
    EXPECT_TRUE(attach());
    EXPECT_EQ(in_service([](FakeService& service) { return service.count_attaches(); }), 3U);
}

TEST_F(SessionLinkTest, AServiceThatDoesNotAnswerIsNotWaitedForForEver) {
    const UnixListener deaf = UnixListener::create({.path = path()}).value();
    SessionOptions wanted = options();
    wanted.timeout_ms = 30;
    EXPECT_EQ(refusal(wanted).code(), Errc::timed_out);
}

TEST_F(SessionLinkTest, AHandshakeThatStopsIsNotWaitedForForEver) {
    serve();
    SessionOptions wanted = options();
    wanted.timeout_ms = 300;
    for (const std::size_t messages : {0U, 1U, 3U, 8U}) {
        FakeLies lies;
        lies.handshake_messages = messages;
        lie(lies);
        EXPECT_EQ(refusal(wanted).code(), Errc::timed_out) << messages;
    }
}

TEST_F(SessionLinkTest, AServiceThatAlwaysHangsUpIsNotAskedForEver) {
    serve();
    FakeLies lies;
    lies.handshake_messages = 2;
    lies.is_hanging_up_after = true;
    lie(lies);
    SessionOptions wanted = options();
    wanted.timeout_ms = 300;
    const Errc code = refusal(wanted).code();
    EXPECT_TRUE(code == Errc::unavailable || code == Errc::timed_out);
}

TEST_F(SessionLinkTest, NumbersThatNoShareHasAreRefused) {
    serve();
    const std::vector<std::function<void(SessionReply&)>> wrong{
        [](SessionReply& reply) { reply.size_bytes = 0; },
        [](SessionReply& reply) { reply.size_bytes = 8193; },
        [](SessionReply& reply) { reply.size_bytes = reply.extent_bytes = 1 << 20; },
        [](SessionReply& reply) { reply.extent_bytes = ~std::uint64_t{0}; },
        [](SessionReply& reply) { reply.slot = 4; },
        [](SessionReply& reply) { reply.slot = 65'536; },
        [](SessionReply& reply) { reply.slots = 0; },
        [](SessionReply& reply) { reply.slots = 1025; },
        [](SessionReply& reply) { reply.vectors = 0; },
        [](SessionReply& reply) { reply.vectors = 2049; },
        [](SessionReply& reply) { reply.senders = 3; },
        [](SessionReply& reply) { reply.senders = 0; },
        [](SessionReply& reply) { reply.senders = reply.slots = 17; },
    };
    for (std::size_t index = 0; index < wrong.size(); ++index) {
        FakeLies lies;
        lies.reply = wrong[index];
        lie(lies);
        EXPECT_EQ(refusal().code(), Errc::corrupt) << index << ": " << refusal().message();
    }
    lie({});
    EXPECT_TRUE(attach());
}

TEST_F(SessionLinkTest, DescriptorsThatAreNotWhatTheyShouldBeAreRefused) {
    serve();
    const std::vector<std::function<void(std::vector<Fd>&)>> wrong{
        [](std::vector<Fd>& fds) { fds.clear(); },
        [](std::vector<Fd>& fds) { fds.pop_back(); },
        [](std::vector<Fd>& fds) { fds.push_back(fds.back().duplicate().value()); },
        [](std::vector<Fd>& fds) { std::swap(fds[0], fds[1]); },
        [](std::vector<Fd>& fds) { std::swap(fds[1], fds[2]); },
        [](std::vector<Fd>& fds) { std::swap(fds[2], fds[3]); },
        [](std::vector<Fd>& fds) { std::swap(fds[3], fds[4]); },
        [](std::vector<Fd>& fds) { fds[4] = open_file("/dev/null", OpenMode::read).value(); },
        [](std::vector<Fd>& fds) { fds[1] = open_file("/proc/self/exe", OpenMode::read).value(); },
    };
    for (std::size_t index = 0; index < wrong.size(); ++index) {
        FakeLies lies;
        lies.fds = wrong[index];
        lie(lies);
        EXPECT_NE(refusal().message(), "it attached") << index;
    }
    lie({});
    EXPECT_TRUE(attach());
}

TEST_F(SessionLinkTest, AnotherSlotThanTheOneAskedForOrAnnouncedIsRefused) {
    serve();
    FakeLies lies;
    lies.announced_id = 2;
    lie(lies);
    EXPECT_THAT(refusal().message(), HasSubstr("announced slot 0, and its ivshmem stream says 2"));
    lies = {};
    lies.reply = [](SessionReply& reply) { reply.slot = 1; };
    lie(lies);
    SessionOptions wanted = options();
    wanted.slot = 0;
    EXPECT_THAT(refusal(wanted).message(), HasSubstr("slot 1 where 0 was asked for"));
}

TEST(SessionLinkFaults, WhateverFailsInAnAttachIsAnErrorAndLeavesNothing) {
    const guestmem::testing::TempFolder folder;
    const std::string path = folder.path_of("control");
    const ForkedService service{{.path = path}};
    const SessionOptions options{.control = path, .share = "mailbox", .timeout_ms = patience_ms};
    ASSERT_TRUE(eventually([&] { return Session::attach(options).has_value(); }));
    const auto count = guestmem::testing::for_each_fault(
        {.faults = guestmem::testing::FaultsAre::survivable}, [&] { return Session::attach(options); },
        [] {});
    EXPECT_GE(count, 30U);
}

}  // namespace
}  // namespace guestmem::share
