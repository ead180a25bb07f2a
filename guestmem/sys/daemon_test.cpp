// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/daemon.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>

#include "guestmem/sys/testing/fault_loop.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/sys/testing/temp_folder.hpp"

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using testing::eventually;
using testing::for_each_fault;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempFolder;

constexpr int wait_limit_ms = 10'000;

std::string own_number() { return std::to_string(::getpid()) + "\n"; }

/// The exit code of a process, -1 when a signal ended it; nothing when it does not end in time.
std::optional<int> exit_of(pid_t process) {
    int status = 0;
    if (!eventually([&] { return ::waitpid(process, &status, WNOHANG) == process; })) {
        ::kill(process, SIGKILL);
        return std::nullopt;
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

std::string text_of(const std::array<std::byte, 128>& buffer, std::size_t count) {
    return {reinterpret_cast<const char*>(buffer.data()), count};
}

/// A command in a process of its own, which detaches and then runs `service` in its child. What the child says on
/// `report` arrives in receive_report(); the report's end is the child's end.
class Command {
public:
    template <typename Service>
    explicit Command(Service&& service) {
        auto [ours, theirs] = UnixStream::pair().value();
        process_ = ::fork();
        if (process_ == 0) {
            ours = UnixStream{};
            auto start = BackgroundStart::detach();
            if (!start) ::_exit(3);
            service(*start, theirs);
            ::_exit(0);
        }
        report_ = std::move(ours);
    }

    [[nodiscard]] pid_t process() const { return process_; }
    [[nodiscard]] const UnixStream& report() const { return report_; }
    /// What the child said next; empty when it ended, or said nothing in time.
    [[nodiscard]] std::string receive_report() const {
        std::array<std::byte, 128> buffer{};
        if (!report_.wait_readable(wait_limit_ms).value()) return {};
        return text_of(buffer, report_.receive(buffer).value().value().count_bytes);
    }

private:
    pid_t process_ = -1;
    UnixStream report_;
};

void say(const UnixStream& report, std::string_view text) {
    static_cast<void>(report.send(std::as_bytes(std::span{text})).has_value());
}

TEST(BackgroundStart, LetsTheCommandGoWhenTheServiceIsReady) {
    const Command command{[](BackgroundStart& start, const UnixStream& report) {
        say(report, "made");
        std::array<std::byte, 8> buffer{};
        static_cast<void>(report.receive(buffer).has_value());  // until the test says go
        say(report, start.announce_ready() ? "ready" : "failed");
    }};
    ASSERT_EQ(command.receive_report(), "made");
    int status = 0;
    EXPECT_EQ(::waitpid(command.process(), &status, WNOHANG), 0)
        << "the command ended before the service is ready";

    say(command.report(), "go");

    EXPECT_EQ(command.receive_report(), "ready");
    EXPECT_EQ(exit_of(command.process()), 0);
    EXPECT_EQ(command.receive_report(), "");
}

TEST(BackgroundStart, FailsTheCommandWhenTheServiceEndsFirst) {
    const Command command{[](BackgroundStart&, const UnixStream&) { ::_exit(0); }};
    EXPECT_EQ(exit_of(command.process()), 1);
    EXPECT_EQ(command.receive_report(), "");
}

TEST(BackgroundStart, FailsTheCommandWhenASignalEndsTheService) {
    const Command command{[](BackgroundStart&, const UnixStream&) { ::raise(SIGKILL); }};
    EXPECT_EQ(exit_of(command.process()), 1);
}

TEST(BackgroundStart, LeavesTheSessionAndTheTerminalAndStaysInItsFolder) {
    const std::string here = std::filesystem::current_path().string();
    const Command command{[](BackgroundStart& start, const UnixStream& report) {
        const bool is_ready = start.announce_ready().has_value();
        std::string text = is_ready && ::getsid(0) == ::getpid() ? "own session" : "no session";
        for (const char* stream : {"0", "1", "2"})
            if (std::filesystem::read_symlink(std::string{"/proc/self/fd/"} + stream) != "/dev/null")
                text += " with stream " + std::string{stream};
        say(report, text + " " + std::filesystem::current_path().string());
    }};

    EXPECT_EQ(command.receive_report(), "own session " + here);
    EXPECT_EQ(exit_of(command.process()), 0);
}

TEST(BackgroundStart, SurvivesACommandThatWasKilledAndSaysSo) {
    const Command command{[](BackgroundStart& start, const UnixStream& report) {
        say(report, "made");
        std::array<std::byte, 8> buffer{};
        static_cast<void>(report.receive(buffer).has_value());
        const auto told = start.announce_ready();
        say(report, told ? "told nobody" : told.error().message());
    }};
    ASSERT_EQ(command.receive_report(), "made");

    ::kill(command.process(), SIGKILL);
    EXPECT_EQ(exit_of(command.process()), -1);
    say(command.report(), "go");

    EXPECT_THAT(command.receive_report(), HasSubstr("tell the parent"));
}

TEST(BackgroundStart, WithoutDescriptorsIsAnErrorOfTheCommand) {
    const FaultInjector injector{0, {.only = SysCall::socketpair}};
    const auto start = BackgroundStart::detach();
    ASSERT_FALSE(start);
    EXPECT_EQ(start.error().code(), Errc::exhausted);
}

TEST(PidFile, HoldsOurNumberAndGoesWithTheObject) {
    const TempFolder folder;
    {
        const auto file = PidFile::create(folder.path_of("pid"));
        ASSERT_TRUE(file) << file.error().message();
        EXPECT_EQ(folder.read("pid"), own_number());
    }
    EXPECT_THAT(folder.entries(), IsEmpty());
}

TEST(PidFile, ReplacesThatOfAKilledService) {
    const TempFolder folder;
    folder.write("pid", "4194305\n");
    const auto file = PidFile::create(folder.path_of("pid"));
    ASSERT_TRUE(file);
    EXPECT_EQ(folder.read("pid"), own_number());
}

TEST(PidFile, AMoveKeepsTheFile) {
    const TempFolder folder;
    PidFile kept;
    {
        auto file = PidFile::create(folder.path_of("pid"));
        ASSERT_TRUE(file);
        kept = std::move(*file);
    }
    EXPECT_THAT(folder.entries(), ElementsAre("pid"));
    const PidFile last{std::move(kept)};
    EXPECT_THAT(folder.entries(), ElementsAre("pid"));
}

TEST(PidFile, SaysWhichPathCannotBeWritten) {
    const TempFolder folder;
    const auto file = PidFile::create(folder.path_of("no/pid"));
    ASSERT_FALSE(file);
    EXPECT_EQ(file.error().code(), Errc::not_found);
    EXPECT_THAT(file.error().message(), HasSubstr("pid file"));
    EXPECT_THAT(file.error().message(), HasSubstr(folder.path_of("no/pid")));
}

TEST(PidFile, WhateverFailsNoFileIsLeft) {
    const TempFolder folder;
    // A file that cannot be read names nobody: that one failure is survived.
    const auto count = for_each_fault(
        testing::FaultLoopOptions{.faults = testing::FaultsAre::survivable},
        [&] { return PidFile::create(folder.path_of("pid")); },
        [&] { EXPECT_THAT(folder.entries(), IsEmpty()); });
    EXPECT_EQ(count, 5U);  // open to read, open, write, fchmod, rename
}

TEST(PidFile, OfALiveProcessIsNotTakenOver) {
    const TempFolder folder;
    // Process 1 is always there.
    const std::string path = folder.write("pid", "1\n");
    const auto refused = PidFile::create(path);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Errc::already_exists);
    EXPECT_EQ(folder.read("pid"), "1\n");
}

TEST(PidFile, ThatAnotherHasReplacedIsLeftAlone) {
    const TempFolder folder;
    {
        const auto file = PidFile::create(folder.path_of("pid"));
        ASSERT_TRUE(file);
        folder.write("other", "4711\n");
        std::filesystem::rename(folder.path_of("other"), folder.path_of("pid"));
    }
    EXPECT_EQ(folder.read("pid"), "4711\n");
}

}  // namespace
}  // namespace guestmem
