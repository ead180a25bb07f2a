// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/privileges.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <string>
#include <vector>

#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/memfd.hpp"
#include "guestmem/sys/memory_file.hpp"

namespace guestmem {
namespace {

using ::testing::HasSubstr;

/// A user that every host has, and that is not root.
constexpr const char* ordinary = "nobody";

/// What changes a process for ever runs in a child; true when it ended with 0.
bool holds_in_child(const std::function<bool()>& check) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(check() ? 0 : 1);
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/// Says what is not so.
bool expect(bool is_so, const char* what) {
    if (!is_so) fmt::print(stderr, "not so: {} (errno {})\n", what, errno);
    return is_so;
}

uid_t ordinary_user() { return ::getpwnam(ordinary)->pw_uid; }

bool has_no_capabilities() {
    __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    __user_cap_data_struct data[2]{};
    if (::syscall(SYS_capget, &header, data) != 0) return false;
    return std::ranges::all_of(data, [](const auto& set) {
        return set.effective == 0 && set.permitted == 0 && set.inheritable == 0;
    });
}

TEST(Privileges, AreKeptWithoutAUser) {
    EXPECT_TRUE(holds_in_child([] {
        const uid_t before = ::geteuid();
        return drop_privileges("") && ::geteuid() == before && ::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0;
    }));
}

TEST(Privileges, AreGoneForGood) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
    EXPECT_TRUE(holds_in_child([] {
        const auto dropped = drop_privileges(ordinary);
        if (!dropped) return expect(false, dropped.error().message().c_str());
        const uid_t user = ordinary_user();
        std::vector<gid_t> groups(64);
        const int count = ::getgroups(static_cast<int>(groups.size()), groups.data());
        groups.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
        return expect(::getuid() == user && ::geteuid() == user, "it is the user") &&
               expect(::getgid() != 0 && ::getegid() != 0, "it is of another group") &&
               expect(std::ranges::count(groups, 0U) == 0, "root's group is gone") &&
               expect(has_no_capabilities(), "it has no capabilities") &&
               expect(::prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN, 0, 0, 0) == 0, "the bounding set is empty") &&
               expect(::prctl(PR_CAPBSET_READ, CAP_CHOWN, 0, 0, 0) == 0, "its first one, too") &&
               expect(::setresuid(0, 0, 0) != 0 && ::seteuid(0) != 0, "there is no way back") &&
               expect(::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1, "no_new_privs") &&
               expect(::prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0, "not dumpable");
    }));
}

TEST(Privileges, GivenUpLeaveWhatAServiceNeeds) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
    EXPECT_TRUE(holds_in_child([] {
        const auto bell = EventFd::create();
        if (!bell || !drop_privileges(ordinary)) return false;
        const auto memory = create_sealed_memory({.name = "test", .size_bytes = 4096});
        if (!memory || !bell->ring()) return false;
        // Both go through /proc/self, which is root's for a process that is not dumpable.
        const auto reader = reopen_read_only(*memory);
        const auto pending = bell->pending();
        return expect(reader.has_value(), "it opens its own memory for reading") &&
               expect(pending && *pending == 1, "it sees the kicks that wait");
    }));
}

TEST(Privileges, AreNotForTheRightsOfRoot) {
    for (const char* name : {"root", "0"}) {
        const auto dropped = drop_privileges(name);
        ASSERT_FALSE(dropped);
        EXPECT_THAT(dropped.error().message(), HasSubstr("root"));
    }
}

TEST(Privileges, TakenHalfMakeThingsOfThatUserAndGiveThemToOthers) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
    EXPECT_TRUE(holds_in_child([] {
        if (!take_user(ordinary)) return expect(false, "take_user");
        const auto memory = create_sealed_memory({.name = "m", .size_bytes = 4096});
        if (!memory) return expect(false, "memory");
        struct stat status{};
        if (::fstat(memory->view().number(), &status) != 0) return expect(false, "fstat");
        const bool is_its = status.st_uid == ordinary_user();
        const bool has_given = ::fchown(memory->view().number(), 1, 1) == 0;
        return expect(::geteuid() == ordinary_user(), "the user") &&
               expect(is_its, "what it makes is its own") && expect(has_given, "a file given to another") &&
               expect(::setresuid(0, 0, 0) != 0, "no way back to root") &&
               expect(drop_privileges(ordinary).has_value(), "the other half") &&
               expect(has_no_capabilities(), "nothing kept") &&
               expect(::fchown(memory->view().number(), 1, 1) != 0, "nothing given any more");
    }));
}

TEST(Privileges, TakenHalfByNobodyOrByOneselfChangeNothing) {
    EXPECT_TRUE(
        holds_in_child([] { return take_user("") && ::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0; }));
    EXPECT_FALSE(holds_in_child([] { return take_user("root").has_value(); }));
}

TEST(Privileges, OfAUserWhoIsNotThereAreAnError) {
    for (const char* name : {"no-such-user-on-this-host", "4294967294"}) {
        const auto dropped = drop_privileges(name);
        ASSERT_FALSE(dropped);
        EXPECT_EQ(dropped.error().code(), Errc::not_found) << dropped.error().message();
    }
}

TEST(Privileges, OfAnotherUserAreForRootToTake) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user first";
    EXPECT_TRUE(holds_in_child([] {
        constexpr uid_t stranger = 12345;
        if (::setresuid(stranger, stranger, stranger) != 0) return false;
        const auto dropped = drop_privileges(ordinary);
        return !dropped && dropped.error().code() == Errc::permission_denied &&
               dropped.error().message().contains("only root can");
    }));
}

TEST(Privileges, OfOneselfAreGivenUpWithoutRoot) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user first";
    EXPECT_TRUE(holds_in_child([] {
        const uid_t user = ordinary_user();
        if (::setresuid(user, user, user) != 0) return false;
        const auto dropped = drop_privileges(ordinary);
        return dropped && ::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1;
    }));
}

TEST(Privileges, HardenedProcessLeavesNoCore) {
    EXPECT_TRUE(holds_in_child([] {
        rlimit limit{.rlim_cur = 1, .rlim_max = 1};
        return harden_process() && ::getrlimit(RLIMIT_CORE, &limit) == 0 && limit.rlim_cur == 0 &&
               limit.rlim_max == 0 && ::prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0;
    }));
}

TEST(Privileges, WhateverFailsIsAnError) {
    if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
    constexpr std::uint64_t most = 50;
    std::uint64_t nth = 0;
    for (bool has_fired = true; has_fired && nth < most; ++nth) {
        // 0: the call failed and so did the whole; 2: no call was left to fail, and it went well.
        const pid_t child = ::fork();
        if (child == 0) {
            FaultInjector injector{nth};
            const bool is_good = drop_privileges(ordinary).has_value();
            const bool is_fired = injector.has_fired();
            ::_exit(is_fired ? (is_good ? 1 : 0) : (is_good ? 2 : 1));
        }
        int status = 0;
        while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
        }
        ASSERT_TRUE(WIFEXITED(status));
        ASSERT_NE(WEXITSTATUS(status), 1) << "round " << nth;
        has_fired = WEXITSTATUS(status) == 0;
    }
    EXPECT_EQ(nth,
              8U);  // groups, group, user, capabilities, three of hardening, and the round without a fault
}

TEST(Privileges, OfOneThreadGoWithoutItsUser) {
    EXPECT_TRUE(holds_in_child([] {
        const uid_t before = ::geteuid();
        return drop_thread_capabilities() && expect(has_no_capabilities(), "it has no capability") &&
               expect(::prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1, "no new privileges") &&
               expect(::geteuid() == before, "the same user") &&
               expect(before != 0 || ::prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN, 0, 0, 0) == 0, "no way back");
    }));
}

TEST(Privileges, DescriptorsFromANumberOnAreClosedOnExec) {
    EXPECT_TRUE(holds_in_child([] {
        // NOLINTBEGIN(android-cloexec-open): that is the case
        const int below = ::open("/dev/null", O_RDONLY);
        const int above = ::open("/dev/null", O_RDONLY);
        // NOLINTEND(android-cloexec-open)
        return below >= 0 && above > below && close_descriptors_on_exec(static_cast<unsigned>(above)) &&
               ::fcntl(below, F_GETFD) == 0 && ::fcntl(above, F_GETFD) == FD_CLOEXEC;
    }));
}

TEST(Privileges, AKernelThatCannotMarkDescriptorsIsToldApart) {
    EXPECT_TRUE(holds_in_child([] {
        FaultInjector old_kernel{0, {.only = SysCall::close_range, .os_error = ENOSYS}};
        const auto closed = close_descriptors_on_exec(3);
        return !closed && closed.error().code() == Errc::unsupported;
    }));
    EXPECT_TRUE(holds_in_child([] {
        FaultInjector shortage{0, {.only = SysCall::close_range}};
        const auto closed = close_descriptors_on_exec(3);
        return !closed && closed.error().code() != Errc::unsupported;
    }));
}

}  // namespace
}  // namespace guestmem
