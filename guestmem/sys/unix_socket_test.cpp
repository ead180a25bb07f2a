// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/unix_socket.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/host.hpp"
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

static_assert(!std::is_copy_constructible_v<UnixStream> && !std::is_copy_constructible_v<UnixListener>);

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span{text}); }

std::uint32_t mode_of(const std::string& path) {
    struct stat status{};
    return ::lstat(path.c_str(), &status) == 0 ? status.st_mode & 0777U : 0;
}

/// A socket file with nobody behind it, as a killed server leaves it.
void leave_stale_socket(const std::string& path) {
    auto listener = UnixListener::create({.path = path}).value();
    const std::string kept = path + ".kept";
    std::filesystem::rename(path, kept);
    listener = UnixListener{};
    std::filesystem::rename(kept, path);
}

TEST(UnixStream, CarriesBytesAndDescriptors) {
    const auto [left, right] = UnixStream::pair().value();
    const EventFd bell = EventFd::create().value();
    const std::array fds{bell.view()};
    std::array<std::byte, 16> buffer{};

    const auto sent = left.send(bytes_of("hello"), fds).value();
    auto received = right.receive(buffer).value();

    EXPECT_EQ(sent.status, SendStatus::sent);
    EXPECT_EQ(sent.count_bytes, 5U);
    ASSERT_TRUE(received);
    EXPECT_EQ(received->count_bytes, 5U);
    EXPECT_FALSE(received->has_lost_fds);
    ASSERT_EQ(received->fds.size(), 1U);
    EXPECT_NE(::fcntl(received->fds[0].view().number(), F_GETFD) & FD_CLOEXEC, 0);
    const EventFd same = EventFd::adopt(std::move(received->fds[0])).value();
    ASSERT_TRUE(same.ring());
    EXPECT_EQ(*bell.drain(), 1U);
}

TEST(UnixStream, CarriesAsManyDescriptorsAsTheLimit) {
    const auto [left, right] = UnixStream::pair().value();
    const EventFd bell = EventFd::create().value();
    const std::vector<FdView> fds(max_fds_per_message, bell.view());
    std::array<std::byte, 1> buffer{};

    ASSERT_TRUE(left.send(bytes_of("x"), fds));
    const auto received = right.receive(buffer).value();

    EXPECT_EQ(received->fds.size(), max_fds_per_message);
    EXPECT_FALSE(received->has_lost_fds);
}

TEST(UnixStreamDeathTest, OneDescriptorPastTheLimitIsOurOwnBug) {
    const auto [left, right] = UnixStream::pair().value();
    const std::vector<FdView> fds(max_fds_per_message + 1, left.view());
    EXPECT_DEATH(static_cast<void>(left.send(bytes_of("x"), fds)), "check failed");
}

TEST(UnixStream, MoreDescriptorsThanExpectedAreClosedAndSaid) {
    const auto [left, right] = UnixStream::pair().value();
    const EventFd bell = EventFd::create().value();
    const std::size_t count = max_fds_per_message + 4;
    // By hand: send() itself never sends so many.
    std::byte byte{};
    iovec part{&byte, 1};
    std::vector<char> control(CMSG_SPACE(sizeof(int) * count));
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* const rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int) * count);
    const std::vector<int> numbers(count, bell.view().number());
    std::memcpy(CMSG_DATA(rights), numbers.data(), sizeof(int) * count);
    const Resources before = Resources::look();
    ASSERT_EQ(::sendmsg(left.view().number(), &header, 0), 1);

    {
        const auto received = right.receive(std::span{&byte, 1}).value();
        EXPECT_TRUE(received->has_lost_fds);
        EXPECT_LE(received->fds.size(), max_fds_per_message);
    }

    EXPECT_EQ(Resources::look(), before);
}

TEST(UnixStream, ReceivesNothingRatherThanWaiting) {
    const auto [left, right] = UnixStream::pair().value();
    ASSERT_TRUE(right.set_nonblocking());
    std::array<std::byte, 4> buffer{};

    EXPECT_FALSE(right.receive(buffer)->has_value());
    EXPECT_FALSE(*right.wait_readable(0));
    ASSERT_TRUE(left.send(bytes_of("x")));

    EXPECT_TRUE(*right.wait_readable(0));
    EXPECT_TRUE(right.receive(buffer)->has_value());
}

TEST(UnixStream, TheOtherEndsGoingIsZeroBytes) {
    auto [left, right] = UnixStream::pair().value();
    ASSERT_TRUE(left.send(bytes_of("last")));
    left = UnixStream{};
    std::array<std::byte, 16> buffer{};

    EXPECT_EQ((*right.receive(buffer))->count_bytes, 4U);
    EXPECT_EQ((*right.receive(buffer))->count_bytes, 0U);
}

TEST(UnixStream, SendingToNobodyIsAnErrorAndNoSignal) {
    auto [left, right] = UnixStream::pair().value();
    right = UnixStream{};

    const auto sent = left.send(bytes_of("x"));

    ASSERT_FALSE(sent);
    EXPECT_EQ(sent.error().code(), Errc::unavailable);
}

TEST(UnixStream, SaysWouldBlockWhenTheOtherEndDoesNotRead) {
    const auto [left, right] = UnixStream::pair().value();
    ASSERT_TRUE(left.set_nonblocking());
    ASSERT_TRUE(left.set_send_buffer(4096));
    const std::string chunk(1'000, 'x');

    SendOutcome outcome{SendStatus::sent, 0};
    for (int turn = 0; turn < 1'000 && outcome.status == SendStatus::sent; ++turn)
        outcome = left.send(bytes_of(chunk)).value();

    EXPECT_EQ(outcome.status, SendStatus::would_block);
    EXPECT_EQ(outcome.count_bytes, 0U);
}

TEST(UnixStream, KnowsWhetherThePeerHasReadAll) {
    const auto [left, right] = UnixStream::pair().value();
    std::array<std::byte, 16> buffer{};

    EXPECT_EQ(*left.unread_by_peer(), 0U);
    ASSERT_TRUE(left.send(bytes_of("abc")));
    EXPECT_GT(*left.unread_by_peer(), 0U);
    ASSERT_TRUE(right.receive(buffer));

    EXPECT_EQ(*left.unread_by_peer(), 0U);
}

TEST(UnixStream, KnowsWhoTheOtherEndIs) {
    const auto [left, right] = UnixStream::pair().value();
    const PeerCredentials who = left.peer().value();
    EXPECT_EQ(who.pid, own_process());
    EXPECT_EQ(who.uid, own_user());
    EXPECT_EQ(who.gid, ::getegid());
}

TEST(UnixStream, DescriptorsAtTheUsersLimitInFlightAreToldApart) {
    const auto [left, right] = UnixStream::pair().value();
    const FaultInjector injector{0, {.only = SysCall::sendmsg, .os_error = ETOOMANYREFS}};
    EXPECT_EQ(left.send(bytes_of("x"))->status, SendStatus::too_many_in_flight);
}

TEST(UnixStream, AdoptsASocketAndNothingElse) {
    auto [left, right] = UnixStream::pair().value();
    EXPECT_TRUE(UnixStream::adopt(std::move(left).release()));
    const auto refused = UnixStream::adopt(open_file("/dev/null", OpenMode::read_write).value());
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::invalid_argument);
}

TEST(UnixStream, WhateverFailsNothingIsLeft) {
    EXPECT_EQ(for_each_fault([] { return UnixStream::pair(); }), 1U);
    EXPECT_GE(for_each_fault([]() -> Result<UnixStream> {
                  auto ends = GM_TRY(UnixStream::pair());
                  return UnixStream::adopt(std::move(ends.first).release());
              }),
              2U);
}

TEST(UnixListener, ConnectsAClientWithTheServer) {
    const TempFolder folder;
    const std::string path = folder.path_of("socket");
    const auto listener = UnixListener::create({.path = path}).value();
    std::array<std::byte, 16> buffer{};

    EXPECT_FALSE(listener.accept()->has_value());
    const auto client = UnixStream::connect(path).value();
    const auto server = listener.accept().value();

    ASSERT_TRUE(server);
    ASSERT_TRUE(server->send(bytes_of("hi")));
    EXPECT_EQ((*client.receive(buffer))->count_bytes, 2U);
    // What accept() hands out does not wait.
    EXPECT_FALSE(server->receive(buffer)->has_value());
}

TEST(UnixListener, SetsModeOwnerAndGroup) {
    const TempFolder folder;
    const std::string path = folder.path_of("socket");
    const auto listener =
        UnixListener::create({.path = path, .owner = own_user(), .group = ::getegid(), .mode = 0640}).value();

    EXPECT_EQ(mode_of(path), 0640U);
    EXPECT_EQ(listener.path(), path);
}

TEST(UnixListener, AnOwnerOrGroupThatIsNotGivenAnyMoreIsTakenBack) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can give a file away";
    const TempFolder folder;
    const std::string path = folder.path_of("socket");
    const auto listener = UnixListener::create({.path = path, .owner = 4242, .group = 4243}).value();
    const auto owner_of = [&] {
        struct stat status{};
        EXPECT_EQ(::lstat(path.c_str(), &status), 0);
        return std::pair{status.st_uid, status.st_gid};
    };
    EXPECT_EQ(owner_of(), (std::pair{uid_t{4242}, gid_t{4243}}));
    ASSERT_TRUE(listener.set_access({.path = path, .group = 4244}));
    EXPECT_EQ(owner_of(), (std::pair{::geteuid(), gid_t{4244}}));
    ASSERT_TRUE(listener.set_access({.path = path}));
    EXPECT_EQ(owner_of(), (std::pair{::geteuid(), ::getegid()}));
    ASSERT_EQ(::chown(folder.path().c_str(), 0, 4245), 0);
    ASSERT_EQ(::chmod(folder.path().c_str(), 02755), 0);
    ASSERT_TRUE(listener.set_access({.path = path}));
    EXPECT_EQ(owner_of(), (std::pair{::geteuid(), gid_t{4245}})) << "as a file that is made there";
}

TEST(UnixListener, IsForItsOwnerUnlessToldOtherwise) {
    const TempFolder folder;
    const auto listener = UnixListener::create({.path = folder.path_of("socket")}).value();
    EXPECT_EQ(mode_of(listener.path()), 0600U);
}

TEST(UnixListener, RemovesItsFileWhenItGoes) {
    const TempFolder folder;
    {
        const auto listener = UnixListener::create({.path = folder.path_of("socket")}).value();
    }
    EXPECT_THAT(folder.entries(), IsEmpty());
}

TEST(UnixListener, LeavesAFileThatSomebodyElsePutThere) {
    const TempFolder folder;
    {
        const auto listener = UnixListener::create({.path = folder.path_of("socket")}).value();
        std::filesystem::remove(listener.path());
        folder.write("socket", "somebody's");
    }
    EXPECT_EQ(folder.read("socket"), "somebody's");
}

TEST(UnixListener, AMoveKeepsTheFileAndAnAssignmentRemovesTheOldOne) {
    const TempFolder folder;
    auto first = UnixListener::create({.path = folder.path_of("a")}).value();
    auto second = UnixListener::create({.path = folder.path_of("b")}).value();

    UnixListener moved{std::move(first)};
    EXPECT_THAT(folder.entries(), ElementsAre("a", "b"));
    moved = std::move(second);

    EXPECT_THAT(folder.entries(), ElementsAre("b"));
}

TEST(UnixListener, ReplacesTheSocketOfAKilledServer) {
    const TempFolder folder;
    const std::string path = folder.path_of("socket");
    leave_stale_socket(path);
    ASSERT_THAT(folder.entries(), ElementsAre("socket"));

    EXPECT_TRUE(check_socket_path(path));
    const auto listener = UnixListener::create({.path = path});

    ASSERT_TRUE(listener) << listener.error().message();
    EXPECT_TRUE(UnixStream::connect(path));
}

TEST(UnixListener, LeavesALiveServerAloneAndUnasked) {
    const TempFolder folder;
    const std::string path = folder.path_of("socket");
    const auto live = UnixListener::create({.path = path}).value();

    const auto second = UnixListener::create({.path = path});

    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code(), Errc::busy);
    EXPECT_EQ(second.error().os_error(), EADDRINUSE);
    EXPECT_FALSE(live.accept()->has_value());  // the question made no connection
    EXPECT_TRUE(UnixStream::connect(path));
}

TEST(UnixListener, LeavesAFileThatIsNoSocketAlone) {
    const TempFolder folder;
    const std::string path = folder.write("socket", "a letter");

    const auto listener = UnixListener::create({.path = path});

    ASSERT_FALSE(listener);
    EXPECT_EQ(listener.error().code(), Errc::already_exists);
    EXPECT_EQ(folder.read("socket"), "a letter");
}

TEST(UnixListener, LeavesALinkAlone) {
    const TempFolder folder;
    const std::string path = folder.path_of("link");
    std::filesystem::create_symlink(folder.path_of("nowhere"), path);
    EXPECT_FALSE(UnixListener::create({.path = path}));
    EXPECT_THAT(folder.entries(), ElementsAre("link"));
}

TEST(UnixListener, SaysWhichFolderIsMissing) {
    const TempFolder folder;
    const auto listener = UnixListener::create({.path = folder.path_of("no/socket")});
    ASSERT_FALSE(listener);
    EXPECT_EQ(listener.error().code(), Errc::not_found);
    EXPECT_THAT(listener.error().message(), HasSubstr(folder.path_of("no")));
}

TEST(UnixListener, TakesAPathOfTheLimitAndRefusesOnePast) {
    const TempFolder folder;
    std::string path = folder.path_of("");
    path.resize(max_socket_path_bytes, 's');
    const auto listener = UnixListener::create({.path = path});
    ASSERT_TRUE(listener) << listener.error().message();
    EXPECT_TRUE(UnixStream::connect(path));

    const auto refused = UnixListener::create({.path = path + "s"});

    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::out_of_range);
    EXPECT_FALSE(UnixListener::create({.path = ""}));
    EXPECT_FALSE(UnixStream::connect(path + "s"));
}

TEST(UnixListener, GoesOnWhenSomebodyElseHoldsTheFoldersLock) {
    const TempFolder folder;
    const Fd holder = open_file(folder.path(), OpenMode::read).value();
    ASSERT_EQ(::flock(holder.view().number(), LOCK_EX), 0);
    const auto begin = std::chrono::steady_clock::now();

    const auto listener = UnixListener::create({.path = folder.path_of("socket")});

    EXPECT_TRUE(listener);
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds{8});
}

TEST(UnixListener, WhateverFailsNeitherFileNorDescriptorIsLeft) {
    const TempFolder folder;
    const ListenOptions options{.path = folder.path_of("socket"), .owner = own_user()};
    const auto count = for_each_fault([&] { return UnixListener::create(options); },
                                      [&] { EXPECT_THAT(folder.entries(), IsEmpty()); });
    EXPECT_GE(count, 9U);  // four looks, folder, lock, socket, bind, chmod, listen
}

TEST(UnixListener, WhateverFailsAStaleSocketIsStillReplaceable) {
    const TempFolder folder;
    const std::string path = folder.path_of("socket");
    leave_stale_socket(path);
    const auto count = for_each_fault([&] { return UnixListener::create({.path = path}); },
                                      [&] {
                                          if (folder.entries().empty()) leave_stale_socket(path);
                                          EXPECT_TRUE(check_socket_path(path));
                                      });
    EXPECT_GE(count, 10U);
}

TEST(UnixStream, WhateverFailsWhileConnectingNothingIsLeft) {
    const TempFolder folder;
    const auto listener = UnixListener::create({.path = folder.path_of("socket")}).value();
    const auto connect_both = [&]() -> Result<void> {
        const UnixStream client = GM_TRY(UnixStream::connect(listener.path()));
        const auto server = GM_TRY(listener.accept());
        if (!server) return Error{Errc::io, "nobody to accept"};
        GM_TRY(server->peer());
        GM_TRY(server->set_send_buffer(4096));
        GM_TRY(server->send(bytes_of("x")));
        GM_TRY(server->unread_by_peer());
        GM_TRY(client.wait_readable(0));
        std::byte byte{};
        GM_TRY(client.receive(std::span{&byte, 1}));
        return {};
    };
    // A connection that accept() did not take waits in the listener: it is taken before the next look.
    const auto count = for_each_fault(
        [&] {
            auto result = connect_both();
            return result;
        },
        [&] {
            while (listener.accept()->has_value()) {
            }
        });
    EXPECT_GE(count, 9U);
}

TEST(UnixListener, AConnectionThatVanishedIsNoError) {
    const TempFolder folder;
    const auto listener = UnixListener::create({.path = folder.path_of("socket")}).value();
    const FaultInjector injector{0, {.only = SysCall::accept, .os_error = ECONNABORTED}};
    EXPECT_FALSE(listener.accept()->has_value());
}

TEST(UnixListener, OutOfDescriptorsIsAnError) {
    const TempFolder folder;
    const auto listener = UnixListener::create({.path = folder.path_of("socket")}).value();
    const FaultInjector injector{0, {.only = SysCall::accept}};
    const auto accepted = listener.accept();
    ASSERT_FALSE(accepted);
    EXPECT_EQ(accepted.error().code(), Errc::exhausted);
}

/// A server that lets connections wait and takes none; its backlog is full.
class FullServer {
public:
    explicit FullServer(const std::string& path)
        : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::memcpy(address.sun_path, path.data(), path.size());
        const auto* const at = reinterpret_cast<const sockaddr*>(&address);
        if (::bind(fd_.view().number(), at, sizeof address) != 0 || ::listen(fd_.view().number(), 0) != 0)
            return;
        for (;;) {
            Fd client{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
            if (::connect(client.view().number(), at, sizeof address) != 0) break;
            waiting_.push_back(std::move(client));
        }
        is_full_ = errno == EAGAIN;
    }
    [[nodiscard]] bool is_full() const { return is_full_; }
    void take_one() const { Fd{::accept4(fd_.view().number(), nullptr, nullptr, SOCK_CLOEXEC)}.reset(); }

private:
    Fd fd_;
    std::vector<Fd> waiting_;
    bool is_full_ = false;
};

TEST(UnixStreamDeadline, ConnectsAndWaitsForEverAfterwards) {
    const TempFolder folder;
    const auto listener = UnixListener::create({.path = folder.path_of("socket")}).value();

    const auto client =
        UnixStream::connect(listener.path(), Deadline{std::chrono::milliseconds{200}}).value();

    timeval timeout{.tv_sec = 7, .tv_usec = 7};
    socklen_t length = sizeof timeout;
    ASSERT_EQ(::getsockopt(client.view().number(), SOL_SOCKET, SO_SNDTIMEO, &timeout, &length), 0);
    EXPECT_EQ(timeout.tv_sec, 0);
    EXPECT_EQ(timeout.tv_usec, 0);
    EXPECT_TRUE(listener.accept()->has_value());
}

TEST(UnixStreamDeadline, AFullBacklogIsWaitedForUntilThen) {
    const TempFolder folder;
    const FullServer server{folder.path_of("socket")};
    ASSERT_TRUE(server.is_full());

    const auto begin = std::chrono::steady_clock::now();
    const auto client =
        UnixStream::connect(folder.path_of("socket"), Deadline{std::chrono::milliseconds{100}});

    ASSERT_FALSE(client);
    EXPECT_EQ(client.error().code(), Errc::timed_out);
    EXPECT_THAT(client.error().message(), HasSubstr("has not taken the connection within 100 ms"));
    EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds{95});
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds{5});
}

TEST(UnixStreamDeadline, ABacklogThatGetsRoomLetsItIn) {
    const TempFolder folder;
    const FullServer server{folder.path_of("socket")};
    ASSERT_TRUE(server.is_full());
    std::thread later{[&] {
        std::this_thread::sleep_for(std::chrono::milliseconds{50});
        server.take_one();
    }};
    EXPECT_TRUE(UnixStream::connect(folder.path_of("socket"), Deadline{std::chrono::seconds{10}}));
    later.join();
}

TEST(UnixStreamDeadline, SignalsNeitherEndTheWaitNorMakeItLonger) {
    struct sigaction handler{};
    struct sigaction before{};
    handler.sa_handler = [](int) {};
    ASSERT_EQ(::sigaction(SIGUSR2, &handler, &before), 0);
    const TempFolder folder;
    const FullServer server{folder.path_of("socket")};
    std::atomic<bool> is_over{false};
    const pthread_t waiter = ::pthread_self();
    std::thread nagger{[&] {
        while (!is_over) {
            ::pthread_kill(waiter, SIGUSR2);
            std::this_thread::sleep_for(std::chrono::milliseconds{5});
        }
    }};

    const auto begin = std::chrono::steady_clock::now();
    const auto client =
        UnixStream::connect(folder.path_of("socket"), Deadline{std::chrono::milliseconds{100}});
    const auto waited = std::chrono::steady_clock::now() - begin;
    is_over = true;
    nagger.join();
    ::sigaction(SIGUSR2, &before, nullptr);

    ASSERT_FALSE(client);
    EXPECT_EQ(client.error().code(), Errc::timed_out);
    EXPECT_GE(waited, std::chrono::milliseconds{95});
    EXPECT_LT(waited, std::chrono::seconds{5});
}

TEST(UnixStreamDeadline, NobodyThereIsAnErrorAtOnce) {
    const TempFolder folder;
    const auto client = UnixStream::connect(folder.path_of("none"), Deadline{std::chrono::hours{1}});
    ASSERT_FALSE(client);
    EXPECT_EQ(client.error().code(), Errc::not_found);
}

TEST(UnixStreamDeadline, WhateverFailsNothingIsLeft) {
    const TempFolder folder;
    const auto listener = UnixListener::create({.path = folder.path_of("socket")}).value();
    const auto count = for_each_fault(
        [&] { return UnixStream::connect(listener.path(), Deadline{std::chrono::seconds{1}}); },
        [&] {
            while (listener.accept()->has_value()) {
            }
        });
    EXPECT_EQ(count, 4U);  // socket, time, connect, no time
}

}  // namespace
}  // namespace guestmem
