// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <string>

#include "guestmem/base/check.hpp"

/// Parts of a test in a child process: what changes the user, the mounts or the limits, and what may kill.
///
/// Contract: `body` runs in a child; its expectations that fail are printed and fail the caller's test, and so does a
/// signal that ends it. Nothing else that it does reaches the caller.
/// Threads: the caller has no others.
/// Example:
///     in_child([] { become_user(65534); EXPECT_NE(::geteuid(), 0U); });

namespace guestmem::testing {

/// Whose files nobody owns: the last one of an ordinary user database.
inline constexpr std::uint32_t other_user = 65534;

/// What waitpid() says of it.
template <typename Body>
int status_of_child(Body&& body) {
    std::fflush(nullptr);
    const pid_t child = ::fork();
    GM_CHECK(child >= 0);
    if (child == 0) {
        // What is thrown must not reach the test runner: the child would go on with the other tests.
        try {
            body();
        } catch (const std::exception& thrown) {
            ADD_FAILURE() << "thrown: " << thrown.what();
        }
        std::fflush(nullptr);
        ::_exit(::testing::Test::HasFailure() ? 1 : 0);
    }
    int status = 0;
    GM_CHECK(::waitpid(child, &status, 0) == child);
    return status;
}

template <typename Body>
void in_child(Body&& body) {
    const int status = status_of_child(body);
    EXPECT_FALSE(WIFSIGNALED(status)) << "the child died of signal " << WTERMSIG(status);
    EXPECT_TRUE(!WIFEXITED(status) || WEXITSTATUS(status) == 0) << "expectations of the child failed";
}

/// For the rest of this process, which has to be root's.
inline void become_user(std::uint32_t id) {
    GM_CHECK(::syscall(SYS_setresuid, id, id, id) == 0);
    // Else its folder in /proc belongs to root.
    GM_CHECK(::prctl(PR_SET_DUMPABLE, 1) == 0);
}

/// Mounts of this process alone, and a tmpfs of that size among them; false where this user may not.
inline bool mount_small_tmpfs(const std::string& folder, std::uint64_t size_bytes) {
    if (::unshare(CLONE_NEWNS) != 0 || ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
        return false;
    const std::string options = "size=" + std::to_string(size_bytes);
    return ::mount("tmpfs", folder.c_str(), "tmpfs", 0, options.c_str()) == 0;
}

}  // namespace guestmem::testing
