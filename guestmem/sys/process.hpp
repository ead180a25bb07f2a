// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// Programs started, watched and ended: a child process as an owner.
///
/// Contract: a program that cannot be run is an error of start(), never a child that ends at once. The child leads a
/// process group of its own, so that a terminal's ^C reaches it only through its parent; no signal is blocked or
/// ignored in it, and it has the standard streams and the inherited descriptors, no others that this library opened.
/// Whatever happens, no child is left: the destructor kills (SIGKILL) and reaps one that runs.
/// Threads: one at a time.
/// Lifetime: a child whose parent is killed lives on, and keeps what it inherited.
/// Limits: Linux 5.3 (pidfd_open).
/// Example:
///     const ChildProcess qemu = GM_TRY(ChildProcess::start({.arguments = {"qemu-system-x86_64", "-version"}}));
///     if (GM_TRY(poll_readable(qemu.ended(), 1000))) const auto how = GM_TRY(qemu.try_wait());

namespace guestmem {

struct ProcessOptions {
    std::vector<std::string> arguments = {};  ///< the program, looked for in PATH, and its words
    std::vector<FdView> inherited = {};       ///< the child has them under the same numbers
    FdView output = {};                       ///< its standard output; not open: that of this process
};

struct ProcessEnd {
    int status = 0;  ///< what it ended with; 0 where a signal ended it
    int signal = 0;  ///< that ended it; 0: none

    [[nodiscard]] bool is_good() const { return status == 0 && signal == 0; }
};
/// "ended with status 1", "was ended by signal 9".
[[nodiscard]] std::string to_text(const ProcessEnd& end);

class ChildProcess {
public:
    /// Its standard input is empty.
    [[nodiscard]] static Result<ChildProcess> start(const ProcessOptions& options);
    ChildProcess(ChildProcess&& other) noexcept;
    ChildProcess& operator=(ChildProcess&&) = delete;
    ~ChildProcess();

    [[nodiscard]] pid_t pid() const { return pid_; }
    /// Readable once it has ended.
    [[nodiscard]] FdView ended() const { return ended_; }
    /// How it ended; nothing while it runs.
    [[nodiscard]] Result<std::optional<ProcessEnd>> try_wait();
    /// No error when it has ended already.
    [[nodiscard]] Result<void> send_signal(int signal) const;

private:
    explicit ChildProcess(pid_t pid) : pid_(pid) {}

    pid_t pid_ = 0;
    Fd ended_;
    std::optional<ProcessEnd> end_;
};

}  // namespace guestmem
