// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/service_manager.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstring>
#include <string>
#include <string_view>
#include <thread>

#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/host.hpp"
#include "guestmem/sys/testing/fake_service_manager.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using testing::FakeServiceManager;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(ServiceManager, StoresUnderANameAndRemovesIt) {
    const FakeServiceManager manager{"64"};
    const EventFd bell = EventFd::create().value();
    EXPECT_TRUE(has_service_manager());
    EXPECT_EQ(descriptor_store_limit(), 64U);

    ASSERT_TRUE(store_descriptor("d1.0", bell.view()));
    ASSERT_TRUE(store_descriptor("d1.1", bell.view()));
    ASSERT_TRUE(wait_for_manager(20'000));
    EXPECT_THAT(manager.names(), ElementsAre("d1.0", "d1.1"));

    ASSERT_TRUE(remove_stored_descriptors("d1.0"));
    ASSERT_TRUE(wait_for_manager(20'000));
    EXPECT_THAT(manager.names(), ElementsAre("d1.1"));
    EXPECT_THAT(manager.messages(),
                ElementsAre("FDSTORE=1\nFDNAME=d1.0\nFDPOLL=0", "FDSTORE=1\nFDNAME=d1.1\nFDPOLL=0",
                            "BARRIER=1", "FDSTOREREMOVE=1\nFDNAME=d1.0", "BARRIER=1"));
}

TEST(ServiceManager, ThatIsNotThereIsAnError) {
    ASSERT_FALSE(has_service_manager()) << "the test runs under one: unset NOTIFY_SOCKET";
    const EventFd bell = EventFd::create().value();
    const auto stored = store_descriptor("d1.0", bell.view());
    ASSERT_FALSE(stored);
    EXPECT_EQ(stored.error().code(), Errc::unavailable);
    EXPECT_THAT(stored.error().message(), HasSubstr("'d1.0'"));
    EXPECT_FALSE(remove_stored_descriptors("d1.0"));
    EXPECT_FALSE(wait_for_manager(10));
    EXPECT_EQ(descriptor_store_limit(), std::nullopt);
}

TEST(ServiceManager, SaysALimitOnlyWhereItIsANumber) {
    {
        const FakeServiceManager manager{"many"};
        EXPECT_EQ(descriptor_store_limit(), std::nullopt);
    }
    const FakeServiceManager manager{"0"};
    EXPECT_EQ(descriptor_store_limit(), 0U);
}

TEST(ServiceManager, WhateverFailsIsAnError) {
    FakeServiceManager manager{"64"};
    const EventFd bell = EventFd::create().value();
    const auto count = testing::for_each_fault(
        [&]() -> Result<void> {
            GM_TRY(store_descriptor("d1.0", bell.view()));
            GM_TRY(wait_for_manager(20'000));
            GM_TRY(remove_stored_descriptors("d1.0"));
            return wait_for_manager(20'000);
        },
        [&] { manager.forget_all(); });
    EXPECT_EQ(count, 4U);
}

TEST(ServiceManager, TooManyDescriptorsInFlightAreTriedAgain) {
    const FakeServiceManager manager{"64"};
    const EventFd bell = EventFd::create().value();
    {
        const FaultInjector injector{0, {.only = SysCall::notify, .os_error = ETOOMANYREFS, .repeat = 3}};
        EXPECT_TRUE(store_descriptor("d1.0", bell.view()));
        EXPECT_TRUE(injector.has_fired());
    }
    ASSERT_TRUE(wait_for_manager(20'000));
    EXPECT_THAT(manager.names(), ElementsAre("d1.0"));
}

TEST(ServiceManager, TooManyDescriptorsInFlightAreAnErrorWhenTheyStay) {
    const FakeServiceManager manager{"64"};
    const EventFd bell = EventFd::create().value();
    const FaultInjector injector{0, {.only = SysCall::notify, .os_error = ETOOMANYREFS, .repeat = 1'000'000}};
    const auto refused = store_descriptor("d1.0", bell.view());
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::timed_out);
    EXPECT_EQ(refused.error().os_error(), ETOOMANYREFS);
}

TEST(ServiceManager, IsWaitedForThoughTooManyDescriptorsAreInFlightAtFirst) {
    const FakeServiceManager manager{"64"};
    {
        const FaultInjector injector{0, {.only = SysCall::notify, .os_error = ETOOMANYREFS, .repeat = 3}};
        EXPECT_TRUE(wait_for_manager(20'000));
        EXPECT_TRUE(injector.has_fired());
    }
    const FaultInjector injector{0, {.only = SysCall::notify, .os_error = ETOOMANYREFS, .repeat = 1'000'000}};
    EXPECT_EQ(wait_for_manager(20'000).error().code(), Errc::timed_out);
}

TEST(NotifyReady, IsContentWhenNobodyAsked) {
    ASSERT_FALSE(has_service_manager()) << "the test runs under one: unset NOTIFY_SOCKET";
    EXPECT_TRUE(notify_ready("listening"));
    notify_stopping();
}

TEST(NotifyReady, TellsTheManagerThatAsked) {
    const FakeServiceManager manager{""};
    ASSERT_TRUE(notify_ready("two shares"));
    notify_stopping();
    ASSERT_TRUE(wait_for_manager(20'000));
    EXPECT_THAT(manager.messages(), ElementsAre("READY=1\nSTATUS=two shares", "STOPPING=1", "BARRIER=1"));
}

TEST(NotifyReady, AManagerThatIsGoneOrHasNoAddressIsAnError) {
    const testing::TempFolder folder;
    for (const std::string& where : {folder.path_of("nobody"), std::string{"relative"},
                                     std::string{"vsock:2:1"}, "/" + std::string(200, 'x')}) {
        ::setenv("NOTIFY_SOCKET", where.c_str(), 1);
        EXPECT_FALSE(notify_ready("x")) << where;
        ::unsetenv("NOTIFY_SOCKET");
    }
}

/// A manager's socket with an abstract name, which nobody reads but the test.
Fd abstract_manager(const std::string& name) {
    Fd manager{::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path + 1, name.data(), name.size());
    const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    EXPECT_EQ(::bind(manager.view().number(), reinterpret_cast<const sockaddr*>(&address), size), 0);
    ::setenv("NOTIFY_SOCKET", ("@" + name).c_str(), 1);
    return manager;
}

TEST(NotifyReady, ReachesAManagerWithAnAbstractName) {
    const std::string name = "guestmem-notify-" + std::to_string(::getpid());
    // The second is as long as the kernel takes.
    for (const std::size_t size_bytes : {name.size(), sizeof(sockaddr_un::sun_path) - 1}) {
        const Fd manager = abstract_manager(name + std::string(size_bytes - name.size(), 'x'));
        EXPECT_TRUE(notify_ready("x")) << size_bytes;
        ::unsetenv("NOTIFY_SOCKET");
        std::array<std::byte, 64> text{};
        EXPECT_EQ(read_some(manager, text).value(), std::string_view{"READY=1\nSTATUS=x"}.size());
    }
}

TEST(NotifyReady, AnAbstractNameThatIsTooLongIsAnError) {
    ::setenv("NOTIFY_SOCKET", ("@" + std::string(sizeof(sockaddr_un::sun_path), 'x')).c_str(), 1);
    const auto refused = notify_ready("x");
    ::unsetenv("NOTIFY_SOCKET");
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().os_error(), E2BIG);
}

TEST(ServiceManager, AnInterruptedWaitIsOneBarrierAndOneTime) {
    const Fd manager = abstract_manager("guestmem-barrier-" + std::to_string(::getpid()));
    struct sigaction interrupt{};
    interrupt.sa_handler = [](int) {};
    struct sigaction before{};
    ASSERT_EQ(::sigaction(SIGUSR2, &interrupt, &before), 0);
    std::atomic<bool> has_ended{false};
    // A few, for the socket has room for few datagrams.
    std::thread interrupter{[&, waiting = ::pthread_self()] {
        for (int i = 0; i < 5 && !has_ended; ++i) {
            std::this_thread::sleep_for(std::chrono::milliseconds{40});
            ::pthread_kill(waiting, SIGUSR2);
        }
    }};

    const auto waited = wait_for_manager(250);
    has_ended = true;
    interrupter.join();
    ::sigaction(SIGUSR2, &before, nullptr);
    ::unsetenv("NOTIFY_SOCKET");

    ASSERT_FALSE(waited);
    EXPECT_EQ(waited.error().os_error(), ETIMEDOUT);
    std::array<std::byte, 64> text{};
    EXPECT_EQ(read_some(manager, text).value(), std::string_view{"BARRIER=1"}.size());
    EXPECT_FALSE(read_some(manager, text));
}

/// In a child whose descriptors 3 and 4 are /dev/null and an eventfd with one kick.
template <typename Function>
int with_passed(const std::string& process, Function&& function) {
    const pid_t child = ::fork();
    if (child == 0) {
        while (::open("/dev/null", O_RDONLY | O_CLOEXEC) < 5) {
        }
        const int null = ::fcntl(::open("/dev/null", O_RDONLY), F_DUPFD, 100);
        const EventFd bell = EventFd::create().value();
        const int rung = ::fcntl(bell.view().number(), F_DUPFD, 100);
        if (!bell.ring() || ::dup2(null, 3) != 3 || ::dup2(rung, 4) != 4) ::_exit(100);
        ::setenv("LISTEN_PID", process.empty() ? std::to_string(::getpid()).c_str() : process.c_str(), 1);
        ::setenv("LISTEN_FDS", "2", 1);
        ::setenv("LISTEN_FDNAMES", "null:d3.1f", 1);
        ::_exit(function());
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(PassedDescriptors, AreTakenOnceWithTheirNames) {
    EXPECT_EQ(with_passed("",
                          [] {
                              auto passed = take_passed_fds();
                              if (!passed || passed->size() != 2) return 1;
                              if (passed->at(0).name != "null" || passed->at(1).name != "d3.1f") return 2;
                              if ((::fcntl(3, F_GETFD) & FD_CLOEXEC) == 0) return 3;
                              const auto bell = EventFd::adopt(std::move(passed->at(1).fd));
                              if (!bell || bell->drain().value() != 1) return 4;
                              if (::getenv("LISTEN_FDS") != nullptr) return 5;
                              const auto again = take_passed_fds();
                              return again && again->empty() ? 0 : 6;
                          }),
              0);
}

TEST(PassedDescriptors, OfAnotherProcessAreLeftAlone) {
    EXPECT_EQ(with_passed("1",
                          [] {
                              const auto passed = take_passed_fds();
                              if (!passed || !passed->empty()) return 1;
                              return ::fcntl(3, F_GETFD) >= 0 ? 0 : 2;
                          }),
              0);
}

TEST(PassedDescriptors, ThatDoNotFitTheirNamesAreAnErrorAndClosed) {
    EXPECT_EQ(with_passed("",
                          [] {
                              ::setenv("LISTEN_FDNAMES", "one", 1);
                              const auto passed = take_passed_fds();
                              if (passed || passed.error().code() != Errc::invalid_argument) return 1;
                              if (::fcntl(3, F_GETFD) >= 0 || ::fcntl(4, F_GETFD) >= 0) return 2;
                              return ::fcntl(5, F_GETFD) >= 0 ? 0 : 3;
                          }),
              0);
}

TEST(PassedDescriptors, OfWhichOneIsNotThereAreAnErrorAndTheOthersClosed) {
    EXPECT_EQ(with_passed("",
                          [] {
                              ::close(4);
                              const auto passed = take_passed_fds();
                              if (passed || passed.error().os_error() != EBADF) return 1;
                              return ::fcntl(3, F_GETFD) < 0 ? 0 : 2;
                          }),
              0);
}

TEST(PassedDescriptors, AreNoneForAProgramThatIsNoService) {
    EXPECT_THAT(take_passed_fds().value(), IsEmpty());
    const FaultInjector injector{0, {.only = SysCall::passed_fds}};
    EXPECT_FALSE(take_passed_fds());
}

}  // namespace
}  // namespace guestmem
