// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/seccomp_filter.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/sockios.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <initializer_list>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "guestmem/sys/faults.hpp"

#ifndef __has_feature
#define __has_feature(feature) 0
#endif

/// In every program that counts its coverage, and in no other.
extern "C" [[gnu::weak]] void __gcov_init(void*);  // NOLINT(bugprone-reserved-identifier): the compiler's

namespace guestmem {
namespace {

/// Of <linux/prctl.h>, for C libraries that name their memory; older headers have not got it.
constexpr int set_vma_name = 0x53564d41;

/// Allowed whatever the arguments are. Names that an architecture has not got are passed over.
constexpr auto plain_calls = std::to_array<std::string_view>({
    // descriptors and files
    "read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 close close_range dup dup2 dup3",
    "fcntl lseek flock pipe2 fstat stat lstat newfstatat fstatat64 statx statfs fstatfs access faccessat",
    "faccessat2 readlink readlinkat getdents64 getcwd chdir umask fsync fdatasync",
    // names of sockets and of shm objects, and who owns them
    "unlink unlinkat mkdir mkdirat chown lchown fchown fchownat",
    // memory
    "brk munmap mremap madvise membarrier memfd_create ftruncate fallocate",
    // waiting
    "poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2",
    "timerfd_create timerfd_settime timerfd_gettime signalfd4 io_setup io_submit io_getevents io_destroy",
    // local sockets; socket and socketpair are below
    "bind listen accept accept4 connect shutdown sendmsg sendto sendmmsg recvmsg recvfrom recvmmsg",
    "getsockopt setsockopt getsockname getpeername",
    // clocks and chance
    "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time getrandom",
    // threads and signals; clone is below
    "futex futex_waitv set_robust_list get_robust_list rseq set_tid_address sched_yield sched_getaffinity",
    "sigaltstack rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait rt_sigpending restart_syscall",
    "tgkill tkill exit exit_group wait4 waitid pidfd_open setsid getrlimit",
    // who we are, and what the host is
    "getpid getppid gettid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid",
    "capget uname sysinfo getrusage times",
});

/// One condition on one argument: (argument & mask) == value. None without a mask.
struct Condition {
    const char* call = "";
    unsigned argument = 0;
    std::uint64_t mask = 0;
    std::uint64_t value = 0;
};

constexpr std::uint64_t whole_int = 0xffffffff;
constexpr std::uint64_t write_and_execute = PROT_WRITE | PROT_EXEC;
constexpr std::uint64_t special_modes = S_ISUID | S_ISGID | S_ISVTX;
/// O_TMPFILE has O_DIRECTORY in it.
constexpr std::uint64_t making = O_CREAT | (O_TMPFILE & ~O_DIRECTORY);
constexpr std::uint64_t namespaces =
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;
#ifdef __s390x__
constexpr unsigned clone_flags_argument = 1;
#else
constexpr unsigned clone_flags_argument = 0;
#endif

/// Each line is one way in which the call is allowed.
constexpr auto conditions = std::to_array<Condition>({
    {"socket", 0, whole_int, AF_UNIX},
    {"socketpair", 0, whole_int, AF_UNIX},
    {"mmap", 2, write_and_execute, 0},
    {"mmap", 2, write_and_execute, PROT_WRITE},
    {"mmap", 2, write_and_execute, PROT_EXEC},
    {"mprotect", 2, write_and_execute, 0},
    {"mprotect", 2, write_and_execute, PROT_WRITE},
    {"mprotect", 2, write_and_execute, PROT_EXEC},
    {"open", 1, making, 0},
    {"openat", 2, making, 0},
    {"chmod", 1, special_modes, 0},
    {"fchmod", 1, special_modes, 0},
    {"fchmodat", 2, special_modes, 0},
    {"clone", clone_flags_argument, namespaces, 0},
    {"fork", 0, 0, 0},
    {"vfork", 0, 0, 0},
    // Whether a process is there; signals to others are not ours to send.
    {"kill", 1, whole_int, 0},
    // Limits of this process only.
    {"prlimit64", 0, whole_int, 0},
    {"ioctl", 1, whole_int, TCGETS},
    {"ioctl", 1, whole_int, TIOCGWINSZ},
    {"ioctl", 1, whole_int, FIONREAD},
    {"ioctl", 1, whole_int, FIONBIO},
    {"ioctl", 1, whole_int, SIOCOUTQ},
    {"prctl", 0, whole_int, PR_SET_NAME},
    {"prctl", 0, whole_int, PR_GET_NAME},
    {"prctl", 0, whole_int, PR_SET_PDEATHSIG},
    {"prctl", 0, whole_int, PR_GET_DUMPABLE},
    {"prctl", 0, whole_int, PR_CAPBSET_READ},
    {"prctl", 0, whole_int, PR_SET_NO_NEW_PRIVS},
    {"prctl", 0, whole_int, set_vma_name},
});

constexpr auto making_files = std::to_array<Condition>({
    {"open", 1, making | O_EXCL, O_CREAT | O_EXCL},
    {"openat", 2, making | O_EXCL, O_CREAT | O_EXCL},
});

using Context = std::unique_ptr<void, decltype([](void* context) { ::seccomp_release(context); })>;

Error failure(int status, std::string_view what) {
    return Error::from_errno(-status, fmt::format("filter of system calls: {}", what));
}

/// The number of a call; nothing where this architecture has no such call.
std::optional<int> number_of(const char* call) {
    const int number = ::seccomp_syscall_resolve_name(call);
    if (number < 0) return std::nullopt;
    return number;
}

Result<void> allow(const Context& context, std::span<const Condition> allowed) {
    for (const Condition& condition : allowed) {
        const auto number = number_of(condition.call);
        if (!number) continue;
        const scmp_arg_cmp compare{.arg = condition.argument,
                                   .op = SCMP_CMP_MASKED_EQ,
                                   .datum_a = condition.mask,
                                   .datum_b = condition.value};
        const int status = condition.mask == 0 ? ::seccomp_rule_add(context.get(), SCMP_ACT_ALLOW, *number, 0)
                                               : ::seccomp_rule_add_array(context.get(), SCMP_ACT_ALLOW,
                                                                          *number, 1, &compare);
        if (status < 0) return failure(status, fmt::format("allow {}", condition.call));
    }
    return {};
}

Result<void> fill(const Context& context, bool may_make_files) {
    for (std::string_view rest : plain_calls) {
        while (!rest.empty()) {
            const std::string call{rest.substr(0, rest.find(' '))};
            rest.remove_prefix(std::min(call.size() + 1, rest.size()));
            const Condition always{.call = call.c_str()};
            GM_TRY(allow(context, std::span{&always, 1}));
        }
    }
    GM_TRY(allow(context, conditions));
    if (may_make_files) GM_TRY(allow(context, making_files));
    if (const auto clone3 = number_of("clone3")) {
        const int status = ::seccomp_rule_add(context.get(), SCMP_ACT_ERRNO(ENOSYS), *clone3, 0);
        if (status < 0) return failure(status, "refuse clone3");
    }
    return {};
}

std::uint32_t action_of(FilterAnswer answer) {
    switch (answer) {
        case FilterAnswer::kill: return SCMP_ACT_KILL_PROCESS;
        case FilterAnswer::refuse: return SCMP_ACT_ERRNO(EPERM);
        case FilterAnswer::log: return SCMP_ACT_LOG;
    }
    return SCMP_ACT_KILL_PROCESS;
}

}  // namespace

std::optional<std::string> find_filter_obstacle() {
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
    return "it is instrumented by AddressSanitizer, which makes system calls of its own";
#elif defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
    return "it is instrumented by ThreadSanitizer, which makes system calls of its own";
#elif __has_feature(memory_sanitizer)
    return "it is instrumented by MemorySanitizer, which makes system calls of its own";
#else
    if (&__gcov_init != nullptr) return "it counts its coverage, and writes files when it ends";
    return std::nullopt;
#endif
}

Result<void> install_service_filter(const ServiceFilterOptions& options) {
    if (const auto obstacle = find_filter_obstacle())
        return Error{Errc::unsupported,
                     fmt::format("filter of system calls: this build cannot: {}", *obstacle)};
    const std::uint32_t action = action_of(options.answer);
    const Context context{::seccomp_init(action)};
    if (!context) return failure(-ENOMEM, "begin");
    for (const auto& [attribute, value] : std::initializer_list<std::pair<scmp_filter_attr, std::uint32_t>>{
             {SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS},
             {SCMP_FLTATR_CTL_NNP, 1},
             {SCMP_FLTATR_CTL_TSYNC, 1},
             // A tree instead of a line: most calls are answered after a few comparisons.
             {SCMP_FLTATR_CTL_OPTIMIZE, 2}})
        if (const int status = ::seccomp_attr_set(context.get(), attribute, value); status < 0)
            return failure(status, fmt::format("set attribute {}", static_cast<int>(attribute)));
    GM_TRY(fill(context, options.may_make_files));
    int status = 0;
    const int loaded = checked_call(SysCall::seccomp, [&] {
        status = ::seccomp_load(context.get());
        if (status < 0) errno = -status;
        return status < 0 ? -1 : 0;
    });
    if (loaded < 0) return failure(-errno, "hand it to the kernel");
    return {};
}

}  // namespace guestmem
