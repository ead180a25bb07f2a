// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/detached_process.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>

#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/seqpacket_socket.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/testing/resources.hpp"

namespace guestmem {
namespace {

using testing::eventually;
using ::testing::HasSubstr;
using testing::Resources;

constexpr int wait_limit_ms = 20'000;

/// A socket to the process; its end is the process's end.
struct Line {
    SeqpacketStream ours;
    SeqpacketStream theirs;
};
Line make_line() {
    auto [ours, theirs] = SeqpacketStream::pair().value();
    return {.ours = std::move(ours), .theirs = std::move(theirs)};
}

void say(const SeqpacketStream& line, std::string_view text) {
    static_cast<void>(line.send(std::as_bytes(std::span{text})).has_value());
}

/// What comes next; empty at the end.
std::string hear(const SeqpacketStream& line) {
    std::array<char, 4096> buffer{};
    if (!poll_readable(line.view(), wait_limit_ms).value()) return "(nothing comes)";
    const auto received = line.receive(std::as_writable_bytes(std::span{buffer})).value();
    return {buffer.data(), received ? received->count_bytes : 0};
}

void wait_for_word(const SeqpacketStream& line) {
    std::array<std::byte, 64> word{};
    static_cast<void>(poll_readable(line.view(), wait_limit_ms).has_value());
    // Taken: what is unread at its end makes the other end hear of that first.
    static_cast<void>(line.receive(word).has_value());
}

TEST(DetachedProcess, RunsTheFunctionAndTellsItsNumber) {
    Line line = make_line();
    const std::array kept{line.theirs.view()};
    const auto number = start_detached({.name = "guestmem-test", .kept = kept},
                                       [&](const std::function<void()>& announce_ready) {
                                           announce_ready();
                                           std::string name;
                                           std::getline(std::ifstream{"/proc/self/comm"}, name);
                                           say(line.theirs, std::to_string(::getpid()) + " " + name);
                                           return 0;
                                       });
    ASSERT_TRUE(number) << number.error().message();
    line.theirs = SeqpacketStream{};
    EXPECT_EQ(hear(line.ours), std::to_string(*number) + " guestmem-test");
    EXPECT_EQ(hear(line.ours), "");
}

/// What is to be seen of the process from inside.
std::string look_around(const SeqpacketStream& line) {
    std::string found;
    std::set<int> open;
    for (int fd = 0; fd < 4096; ++fd)
        if (::fcntl(fd, F_GETFD) >= 0) open.insert(fd);
    if (open != std::set{0, 1, 2, line.view().number()}) found += "descriptors ";
    for (const char* stream : {"0", "1", "2"})
        if (std::filesystem::read_symlink(std::string{"/proc/self/fd/"} + stream) != "/dev/null")
            found += "streams ";
    for (int signal = 1; signal < SIGRTMIN; ++signal) {
        struct sigaction action{};
        if (::sigaction(signal, nullptr, &action) == 0 && action.sa_handler != SIG_DFL) found += "signals ";
    }
    sigset_t mask;
    ::sigprocmask(SIG_SETMASK, nullptr, &mask);
    if (::sigismember(&mask, SIGUSR1) != 0) found += "mask ";
    if (::getsid(0) == ::getpid() || ::getsid(0) == 0) found += "session ";
    if (std::filesystem::current_path() != "/") found += "folder ";
    const Resources resources = Resources::look();
    for (const std::string& mapping : resources.mappings) found += mapping + " ";
    return found.empty() ? "nothing" : found;
}

TEST(DetachedProcess, HasNothingOfItsStarter) {
    Line line = make_line();
    const EventFd other = EventFd::create().value();
    void* const shared = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(shared, MAP_FAILED);
    struct sigaction handler{};
    struct sigaction before{};
    handler.sa_handler = [](int) {};
    ASSERT_EQ(::sigaction(SIGUSR2, &handler, &before), 0);
    sigset_t blocked;
    sigset_t mask_before;
    ::sigemptyset(&blocked);
    ::sigaddset(&blocked, SIGUSR1);
    ::pthread_sigmask(SIG_BLOCK, &blocked, &mask_before);
    const std::array kept{line.theirs.view()};

    const auto number = start_detached({.name = "guestmem-test", .kept = kept},
                                       [&](const std::function<void()>& announce_ready) {
                                           announce_ready();
                                           say(line.theirs, look_around(line.theirs));
                                           return 0;
                                       });

    ::pthread_sigmask(SIG_SETMASK, &mask_before, nullptr);
    ::sigaction(SIGUSR2, &before, nullptr);
    ::munmap(shared, 4096);
    ASSERT_TRUE(number);
    EXPECT_EQ(hear(line.ours), "nothing");
}

TEST(DetachedProcess, OutlivesItsStarterAndIsNobodysChild) {
    Line line = make_line();
    const std::array kept{line.theirs.view()};
    const pid_t starter = ::fork();
    if (starter == 0) {
        const auto number = start_detached({.name = "guestmem-test", .kept = kept},
                                           [&](const std::function<void()>& announce_ready) {
                                               announce_ready();
                                               wait_for_word(line.theirs);
                                               say(line.theirs, "alive");
                                               return 0;
                                           });
        ::_exit(number ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(starter, &status, 0), starter);
    ASSERT_EQ(status, 0);
    line.theirs = SeqpacketStream{};
    say(line.ours, "go");
    EXPECT_EQ(hear(line.ours), "alive");
}

TEST(DetachedProcess, ThatEndsBeforeItIsReadyIsAnError) {
    const auto number = start_detached({.name = "guestmem-test"}, [](const auto&) { return 0; });
    ASSERT_FALSE(number);
    EXPECT_EQ(number.error().code(), Errc::unavailable);
    EXPECT_THAT(number.error().message(), HasSubstr("guestmem-test"));
    EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1) << "no child is left";
}

TEST(DetachedProcess, WhateverFailsNoProcessIsLeft) {
    Line line = make_line();
    const std::array kept{line.theirs.view()};
    const auto count = testing::for_each_fault([&] {
        return start_detached({.name = "guestmem-test", .kept = kept},
                              [&](const std::function<void()>& announce_ready) {
                                  announce_ready();
                                  return 0;
                              });
    });
    EXPECT_EQ(count, 5U);  // pair, fork, poll, receive, send
    line.theirs = SeqpacketStream{};
    EXPECT_TRUE(eventually([&] { return line.ours.is_hung_up(); })) << "a process has its end of the line";
}

}  // namespace
}  // namespace guestmem
