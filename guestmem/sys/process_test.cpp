// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/process.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <string>

#include "guestmem/sys/file_lock.hpp"
#include "guestmem/sys/poll.hpp"
#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"
#include "guestmem/sys/unix_socket.hpp"

namespace guestmem {
namespace {

using testing::for_each_fault;
using testing::TempFolder;

constexpr int patience_ms = 20'000;

ProcessOptions shell(const std::string& script) { return {.arguments = {"sh", "-c", script}}; }

Result<ProcessEnd> run(const ProcessOptions& options) {
    ChildProcess child = GM_TRY(ChildProcess::start(options));
    if (!GM_TRY(poll_readable(child.ended(), patience_ms))) return Error{Errc::timed_out, "it runs"};
    const auto end = GM_TRY(child.try_wait());
    if (!end) return Error{Errc::io, "it has ended and has no end"};
    return *end;
}

/// What a script prints.
std::string output_of(const std::string& script, std::vector<FdView> inherited = {}) {
    auto [ours, its] = UnixStream::pair().value();
    ProcessOptions options = shell(script);
    options.output = its.view();
    options.inherited = std::move(inherited);
    EXPECT_TRUE(run(options));
    its = UnixStream{};
    std::string text;
    std::array<char, 1024> buffer{};
    for (;;) {
        const auto received = ours.receive(std::as_writable_bytes(std::span{buffer})).value();
        if (!received || received->count_bytes == 0) return text;
        text.append(buffer.data(), received->count_bytes);
    }
}

TEST(ChildProcess, SaysHowItEnded) {
    EXPECT_TRUE(run(shell("exit 0"))->is_good());
    EXPECT_EQ(to_text(run(shell("exit 3")).value()), "ended with status 3");
    EXPECT_EQ(to_text(run(shell("kill -9 $$")).value()), "was ended by signal 9");
}

TEST(ChildProcess, HasNoEndWhileItRunsAndOneEndForEver) {
    ChildProcess child = ChildProcess::start({.arguments = {"sleep", "1000"}}).value();
    EXPECT_FALSE(*poll_readable(child.ended(), 0));
    EXPECT_FALSE(child.try_wait()->has_value());

    ASSERT_TRUE(child.send_signal(SIGTERM));
    ASSERT_TRUE(*poll_readable(child.ended(), patience_ms));

    EXPECT_EQ(child.try_wait().value()->signal, SIGTERM);
    EXPECT_EQ(child.try_wait().value()->signal, SIGTERM);
    EXPECT_TRUE(child.send_signal(SIGTERM)) << "it is gone, which was wanted";
}

TEST(ChildProcess, AProgramThatIsNotThereIsAnError) {
    const auto child = ChildProcess::start({.arguments = {"/nowhere/guestmem-no-such-program"}});
    ASSERT_FALSE(child);
    EXPECT_EQ(child.error().code(), Errc::not_found);
    EXPECT_THAT(child.error().message(), ::testing::HasSubstr("/nowhere/guestmem-no-such-program"));
}

TEST(ChildProcess, IsKilledWithItsOwner) {
    pid_t pid = 0;
    {
        const ChildProcess child = ChildProcess::start({.arguments = {"sleep", "1000"}}).value();
        pid = child.pid();
        EXPECT_EQ(::kill(pid, 0), 0);
    }
    EXPECT_EQ(::kill(pid, 0), -1);
    EXPECT_EQ(errno, ESRCH);
}

TEST(ChildProcess, AMovedOneIsKilledOnce) {
    ChildProcess first = ChildProcess::start({.arguments = {"sleep", "1000"}}).value();
    const pid_t pid = first.pid();
    const ChildProcess second{std::move(first)};
    EXPECT_EQ(second.pid(), pid);
    EXPECT_EQ(::kill(pid, 0), 0);
}

TEST(ChildProcess, HasEmptyInputAndOnlyWhatItInherits) {
    EXPECT_EQ(output_of("cat"), "");
    const Fd ours = open_file("/dev/null", OpenMode::read).value();
    const std::string look = "test -e /proc/self/fd/" + std::to_string(ours.view().number()) + " && echo yes";
    EXPECT_EQ(output_of(look), "");
    EXPECT_EQ(output_of(look, {ours.view()}), "yes\n");
}

TEST(ChildProcess, KeepsALockThatItInherits) {
    const TempFolder folder;
    const std::string path = folder.write("file", "x");
    auto lock = FileLock::try_shared(open_file(path, OpenMode::read).value()).value();
    ProcessOptions options{.arguments = {"sleep", "1000"}};
    options.inherited = {lock->file().view()};
    {
        const ChildProcess child = ChildProcess::start(options).value();
        lock.reset();
        EXPECT_TRUE(*is_locked_by_others(open_file(path, OpenMode::read).value()));
    }
    EXPECT_FALSE(*is_locked_by_others(open_file(path, OpenMode::read).value()));
}

TEST(ChildProcess, NoSignalIsBlockedInIt) {
    sigset_t term;
    sigset_t before;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    ASSERT_EQ(::pthread_sigmask(SIG_BLOCK, &term, &before), 0);
    EXPECT_EQ(run(shell("kill -TERM $$; exit 1"))->signal, SIGTERM);
    ASSERT_EQ(::pthread_sigmask(SIG_SETMASK, &before, nullptr), 0);
}

TEST(ChildProcess, WhateverFailsNoDescriptorIsLeft) {
    const auto attempt = []() -> Result<void> {
        ChildProcess child = GM_TRY(ChildProcess::start({.arguments = {"sleep", "1000"}}));
        GM_TRY(child.try_wait());
        return child.send_signal(SIGTERM);
    };
    EXPECT_EQ(for_each_fault(attempt), 4U);  // spawn, pidfd_open, waitpid, kill
}

}  // namespace
}  // namespace guestmem
