// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/process.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <utility>

#include "guestmem/base/check.hpp"
#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

/// What the child does before the program, and how: both can run out of memory.
class SpawnPlan {
public:
    SpawnPlan() {
        note(::posix_spawn_file_actions_init(&actions_));
        note(::posix_spawnattr_init(&attributes_));
    }
    SpawnPlan(const SpawnPlan&) = delete;
    SpawnPlan& operator=(const SpawnPlan&) = delete;
    ~SpawnPlan() {
        ::posix_spawn_file_actions_destroy(&actions_);
        ::posix_spawnattr_destroy(&attributes_);
    }

    void describe(const ProcessOptions& options) {
        note(::posix_spawn_file_actions_addopen(&actions_, STDIN_FILENO, "/dev/null", O_RDONLY, 0));
        if (options.output.is_open())
            note(::posix_spawn_file_actions_adddup2(&actions_, options.output.number(), STDOUT_FILENO));
        // The same number twice takes close-on-exec away.
        for (const FdView fd : options.inherited)
            note(::posix_spawn_file_actions_adddup2(&actions_, fd.number(), fd.number()));
        sigset_t none;
        sigset_t usual;
        ::sigemptyset(&none);
        ::sigemptyset(&usual);
        for (const int signal : {SIGHUP, SIGINT, SIGQUIT, SIGPIPE, SIGTERM, SIGCHLD})
            ::sigaddset(&usual, signal);
        note(::posix_spawnattr_setsigmask(&attributes_, &none));
        note(::posix_spawnattr_setsigdefault(&attributes_, &usual));
        note(::posix_spawnattr_setpgroup(&attributes_, 0));
        note(::posix_spawnattr_setflags(
            &attributes_, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP));
    }
    /// The pid, or -1 with errno.
    pid_t spawn(const std::vector<char*>& arguments) {
        pid_t pid = -1;
        if (failure_ == 0)
            note(::posix_spawnp(&pid, arguments[0], &actions_, &attributes_, arguments.data(), environ));
        if (failure_ == 0) return pid;
        errno = failure_;
        return -1;
    }

private:
    void note(int status) {
        if (failure_ == 0) failure_ = status;
    }

    posix_spawn_file_actions_t actions_{};
    posix_spawnattr_t attributes_{};
    int failure_ = 0;
};

}  // namespace

std::string to_text(const ProcessEnd& end) {
    return end.signal != 0 ? fmt::format("was ended by signal {}", end.signal)
                           : fmt::format("ended with status {}", end.status);
}

Result<ChildProcess> ChildProcess::start(const ProcessOptions& options) {
    GM_CHECK(!options.arguments.empty());
    std::vector<std::string> words = options.arguments;
    std::vector<char*> arguments;
    arguments.reserve(words.size() + 1);
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);

    SpawnPlan plan;
    plan.describe(options);
    const pid_t pid = checked_call(SysCall::spawn, [&] { return plan.spawn(arguments); });
    if (pid < 0) return Error::from_errno(errno, fmt::format("start {}", words[0]));
    ChildProcess child{pid};
    const long number = checked_call(SysCall::pidfd_open, [&] { return ::syscall(SYS_pidfd_open, pid, 0); });
    if (number < 0) return Error::from_errno(errno, fmt::format("watch process {} ({})", pid, words[0]));
    child.ended_ = Fd{static_cast<int>(number)};
    return child;
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, 0)),
      ended_(std::move(other.ended_)),
      end_(std::exchange(other.end_, std::nullopt)) {}

ChildProcess::~ChildProcess() {
    if (pid_ == 0 || end_) return;
    ::kill(pid_, SIGKILL);
    while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
}

Result<std::optional<ProcessEnd>> ChildProcess::try_wait() {
    if (end_) return end_;
    int status = 0;
    const pid_t pid = checked_call(SysCall::waitpid, [&] { return ::waitpid(pid_, &status, WNOHANG); });
    if (pid < 0) return Error::from_errno(errno, fmt::format("wait for process {}", pid_));
    if (pid == 0) return end_;
    end_ = WIFSIGNALED(status) ? ProcessEnd{.signal = WTERMSIG(status)}
                               : ProcessEnd{.status = WEXITSTATUS(status)};
    return end_;
}

Result<void> ChildProcess::send_signal(int signal) const {
    // One that was reaped has given its number back.
    if (end_) return {};
    if (checked_call(SysCall::kill, [&] { return ::kill(pid_, signal); }) < 0)
        return Error::from_errno(errno, fmt::format("send signal {} to process {}", signal, pid_));
    return {};
}

}  // namespace guestmem
