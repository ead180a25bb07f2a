// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/seccomp_filter.hpp"

#include <fcntl.h>
#include <linux/sockios.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <array>
#include <string_view>

#include "guestmem/sys/filter_program.hpp"

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
constexpr auto conditions = std::to_array<CallRule>({
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

constexpr auto making_files = std::to_array<CallRule>({
    {"open", 1, making | O_EXCL, O_CREAT | O_EXCL},
    {"openat", 2, making | O_EXCL, O_CREAT | O_EXCL},
});

}  // namespace

Result<void> install_service_filter(const ServiceFilterOptions& options) {
    FilterPlan plan{.calls = {plain_calls.begin(), plain_calls.end()},
                    .rules = {conditions.begin(), conditions.end()},
                    .answer = options.answer};
    if (options.may_make_files) plan.rules.insert(plan.rules.end(), making_files.begin(), making_files.end());
    const FilterProgram program = GM_TRY(FilterProgram::create(plan));
    return program.install(FilterScope::process);
}

}  // namespace guestmem
