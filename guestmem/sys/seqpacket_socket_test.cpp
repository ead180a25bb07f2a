// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/seqpacket_socket.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <string>
#include <type_traits>
#include <vector>

#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/resources.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::Resources;
using testing::TempFolder;

static_assert(!std::is_copy_constructible_v<SeqpacketStream> &&
              !std::is_copy_constructible_v<SeqpacketListener>);

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span{text}); }

TEST(SeqpacketStream, CarriesWholePacketsWithTheirDescriptors) {
    const auto [left, right] = SeqpacketStream::pair().value();
    const EventFd bell = EventFd::create().value();
    const std::array fds{bell.view()};
    std::array<std::byte, 16> buffer{};
    EXPECT_EQ(left.send(bytes_of("one"), fds).value(), SendStatus::sent);
    EXPECT_EQ(left.send(bytes_of("second")).value(), SendStatus::sent);

    auto first = right.receive(buffer).value();
    ASSERT_TRUE(first);
    EXPECT_EQ(first->count_bytes, 3U);
    ASSERT_EQ(first->fds.size(), 1U);
    EXPECT_NE(::fcntl(first->fds[0].view().number(), F_GETFD) & FD_CLOEXEC, 0);
    const EventFd same = EventFd::adopt(std::move(first->fds[0])).value();
    ASSERT_TRUE(same.ring());
    EXPECT_EQ(*bell.drain(), 1U);
    const auto second = right.receive(buffer).value();
    EXPECT_EQ(second->count_bytes, 6U);
    EXPECT_THAT(second->fds, IsEmpty());
    EXPECT_FALSE(right.receive(buffer).value()) << "nothing waits, and nobody is waited for";
}

TEST(SeqpacketStream, CarriesAsManyDescriptorsAsTheLimit) {
    const auto [left, right] = SeqpacketStream::pair().value();
    const EventFd bell = EventFd::create().value();
    const std::vector<FdView> fds(max_fds_per_packet, bell.view());
    std::array<std::byte, 1> buffer{};
    ASSERT_TRUE(left.send(bytes_of("x"), fds));
    const auto received = right.receive(buffer).value();
    EXPECT_EQ(received->fds.size(), max_fds_per_packet);
    EXPECT_FALSE(received->has_lost_fds);
}

TEST(SeqpacketStreamDeathTest, OneDescriptorPastTheLimitIsOurOwnBug) {
    const auto [left, right] = SeqpacketStream::pair().value();
    const std::vector<FdView> fds(max_fds_per_packet + 1, left.view());
    EXPECT_DEATH(static_cast<void>(left.send(bytes_of("x"), fds)), "check failed");
}

TEST(SeqpacketStream, SaysThatAPacketIsLongerThanTheBuffer) {
    const auto [left, right] = SeqpacketStream::pair().value();
    std::array<std::byte, 2> buffer{};
    ASSERT_TRUE(left.send(bytes_of("abc")));
    EXPECT_TRUE(right.receive(buffer).value()->is_cut);
}

TEST(SeqpacketStream, SaysThatDescriptorsWereLostForWantOfNumbers) {
    const auto [left, right] = SeqpacketStream::pair().value();
    const EventFd bell = EventFd::create().value();
    const std::vector<FdView> fds(200, bell.view());
    ASSERT_TRUE(left.send(bytes_of("x"), fds));
    const pid_t child = ::fork();
    if (child == 0) {
        const rlimit few{.rlim_cur = 100, .rlim_max = 100};
        if (::setrlimit(RLIMIT_NOFILE, &few) != 0) ::_exit(1);
        std::array<std::byte, 1> buffer{};
        const auto received = right.receive(buffer);
        if (!received || !*received) ::_exit(2);
        ::_exit((*received)->has_lost_fds && (*received)->fds.size() < 100 ? 0 : 3);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

TEST(SeqpacketStream, AFullQueueIsNoError) {
    const auto [left, right] = SeqpacketStream::pair().value();
    SendStatus status = SendStatus::sent;
    for (int count = 0; status == SendStatus::sent && count < 100'000; ++count)
        status = left.send(bytes_of("x")).value();
    EXPECT_EQ(status, SendStatus::would_block);
}

TEST(SeqpacketStream, TooManyDescriptorsInFlightAreNoError) {
    const auto [left, right] = SeqpacketStream::pair().value();
    const FaultInjector injector{0, {.only = SysCall::sendmsg, .os_error = ETOOMANYREFS}};
    EXPECT_EQ(left.send(bytes_of("x")).value(), SendStatus::too_many_in_flight);
}

TEST(SeqpacketStream, WhatWasSentSurvivesItsSender) {
    auto [left, right] = SeqpacketStream::pair().value();
    const Fd watch = right.watch_hangup().value();
    std::array<std::byte, 8> buffer{};
    ASSERT_TRUE(left.send(bytes_of("last")));
    EXPECT_FALSE(poll_readable(watch, 0).value()) << "a packet is no end";
    EXPECT_FALSE(right.is_hung_up());

    left = SeqpacketStream{};

    EXPECT_TRUE(poll_readable(watch, 0).value());
    EXPECT_TRUE(right.is_hung_up());
    EXPECT_EQ(right.receive(buffer).value()->count_bytes, 4U);
    EXPECT_EQ(right.receive(buffer).value()->count_bytes, 0U);
    EXPECT_FALSE(right.send(bytes_of("x"))) << "and no signal";
}

TEST(SeqpacketListener, IsForItsOwnerFromTheFirstMomentAndRemovesItsFile) {
    const TempFolder folder;
    {
        const auto listener = SeqpacketListener::create(folder.path_of("socket")).value();
        struct stat status{};
        ASSERT_EQ(::lstat(folder.path_of("socket").c_str(), &status), 0);
        EXPECT_EQ(status.st_mode & 07777U, 0600U);
        EXPECT_FALSE(listener.accept()->has_value());
        const auto client = SeqpacketStream::connect(folder.path_of("socket")).value();
        const auto server = listener.accept().value();
        ASSERT_TRUE(server);
        EXPECT_EQ(server->peer()->pid, ::getpid());
        EXPECT_EQ(server->peer()->uid, own_user());
        EXPECT_EQ(client.peer()->pid, ::getpid());
        EXPECT_EQ(bound_path(listener.view()).value(), folder.path_of("socket"));
        EXPECT_EQ(bound_path(client.view()).value(), "");
    }
    EXPECT_THAT(folder.entries(), IsEmpty());
}

TEST(SeqpacketListener, LeavesAFileThatIsAnothers) {
    const TempFolder folder;
    const std::string path = folder.path_of("socket");
    {
        auto listener = SeqpacketListener::create(path).value();
        listener.leave_file();
    }
    EXPECT_THAT(folder.entries(), ElementsAre("socket"));
    {
        const auto replaced = SeqpacketListener::create(path).value();
        std::filesystem::rename(path, folder.path_of("moved"));
        folder.write("socket", "another's");
    }
    EXPECT_THAT(folder.entries(), ElementsAre("moved", "socket"));
}

TEST(SeqpacketListener, TakesOverStaleFilesOnly) {
    const TempFolder folder;
    const std::string path = folder.path_of("socket");
    {
        auto stale = SeqpacketListener::create(path).value();
        stale.leave_file();
    }
    const auto live = SeqpacketListener::create(path);
    ASSERT_TRUE(live);
    const auto refused = SeqpacketListener::create(path);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::busy);
    EXPECT_FALSE(SeqpacketListener::create(folder.write("file", "text")));
    EXPECT_EQ(folder.read("file"), "text");
    EXPECT_FALSE(SeqpacketListener::create(std::string(max_socket_path_bytes + 1, 'x')));
}

TEST(SeqpacketListener, TellsWhoConnectsWhoListensIfThatIsAnother) {
    const TempFolder folder;
    const auto listener = SeqpacketListener::create(folder.path_of("socket")).value();
    const pid_t child = ::fork();
    if (child == 0) ::_exit(listener.listen_as_this_process() ? 0 : 1);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0);
    EXPECT_EQ(SeqpacketStream::connect(folder.path_of("socket")).value().peer()->pid, child);
}

TEST(SeqpacketListener, WhateverFailsNeitherFileNorDescriptorIsLeft) {
    const TempFolder folder;
    const auto count = for_each_fault([&] { return SeqpacketListener::create(folder.path_of("socket")); },
                                      [&] { EXPECT_THAT(folder.entries(), IsEmpty()); });
    EXPECT_GE(count, 8U);
}

TEST(SeqpacketStream, WhateverFailsNothingIsLeft) {
    const TempFolder folder;
    const auto listener = SeqpacketListener::create(folder.path_of("socket")).value();
    const auto talk = [&]() -> Result<void> {
        const auto client = GM_TRY(SeqpacketStream::connect(folder.path_of("socket")));
        const auto server = GM_TRY(listener.accept());
        if (!server) return Error{Errc::io, "nobody to accept"};
        GM_TRY(server->peer());
        GM_TRY(bound_path(server->view()));
        GM_TRY(client.watch_hangup());
        GM_TRY(client.send(bytes_of("x")));
        std::byte byte{};
        GM_TRY(server->receive(std::span{&byte, 1}));
        GM_TRY(SeqpacketStream::pair());
        return {};
    };
    const auto count = for_each_fault(talk, [&] {
        while (listener.accept()->has_value()) {
        }
    });
    EXPECT_EQ(count, 10U);
}

}  // namespace
}  // namespace guestmem
