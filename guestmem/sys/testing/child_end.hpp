// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <functional>

/// Lives of which only the end is seen: what changes a process for ever is tried in a child.
///
/// Contract: end_of_child() runs `life` in a child, which ends with 0 when it is true, and says what waitpid() says.
/// The child leaves no core file.
/// Threads: one at a time, and no other one in the process.

namespace guestmem::testing {

[[nodiscard]] inline int end_of_child(const std::function<bool()>& life) {
    const pid_t child = ::fork();
    if (child == 0) {
        const rlimit none{.rlim_cur = 0, .rlim_max = 0};
        ::setrlimit(RLIMIT_CORE, &none);
        ::_exit(life() ? 0 : 1);
    }
    int status = -1;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

[[nodiscard]] inline bool ends_well(int status) { return WIFEXITED(status) && WEXITSTATUS(status) == 0; }
[[nodiscard]] inline bool ends_by_filter(int status) {
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS;
}

}  // namespace guestmem::testing
