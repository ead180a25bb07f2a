// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/thread_filter.hpp"

#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/sockios.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <span>
#include <vector>

namespace guestmem {
namespace {

/// What the C library does by itself, and what devices do with descriptors that are open. rt_sigaction: an abort and
/// the fault guard give a signal its usual end.
constexpr std::string_view usual =
    "brk munmap mremap madvise membarrier futex futex_waitv sched_yield restart_syscall exit exit_group "
    "clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time getrandom "
    "getpid gettid getuid geteuid getgid getegid "
    "rt_sigprocmask rt_sigreturn rt_sigaction set_robust_list rseq "
    "read readv pread64 preadv preadv2 write writev close poll ppoll fstat eventfd2";
/// Attaching to a share: socket and fcntl are below. readlinkat is how a descriptor is asked what it is.
constexpr std::string_view attaching =
    "connect sendmsg recvmsg getsockopt setsockopt shutdown newfstatat fstatat64 statx fstatfs readlink "
    "readlinkat epoll_create1 epoll_ctl";
/// An event loop with listeners.
constexpr std::string_view looping =
    "epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 timerfd_create timerfd_settime "
    "timerfd_gettime signalfd4 accept4 sendto recvfrom getsockname getpeername "
    "io_setup io_submit io_getevents io_destroy lseek fallocate getrusage";
/// What a Ringer that was made before rings by.
constexpr std::string_view ringing = "io_submit io_getevents";
/// Shares made for others: memory, its facts, and what is left on this host.
constexpr std::string_view serving =
    "memfd_create ftruncate statfs pidfd_open getdents64 sysinfo getrlimit capget sched_getaffinity "
    "pwrite64 pwritev bind listen";
constexpr std::string_view ending = "unlink unlinkat";

/// Of <linux/prctl.h>, for C libraries that name their memory; older headers have not got it.
constexpr std::uint64_t set_vma_name = 0x53564d41;
constexpr std::uint64_t special_modes = S_ISUID | S_ISGID | S_ISVTX;
/// O_TMPFILE has O_DIRECTORY in it; O_TRUNC empties a file whatever it is opened for.
constexpr std::uint64_t not_reading = O_ACCMODE | O_CREAT | O_TRUNC | (O_TMPFILE & ~O_DIRECTORY);
constexpr std::uint64_t namespaces =
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;
#ifdef __s390x__
constexpr unsigned clone_flags_argument = 1;
#else
constexpr unsigned clone_flags_argument = 0;
#endif

constexpr auto usual_rules = std::to_array<CallRule>({
    {"mmap", 2, PROT_EXEC, 0},
    {"mmap2", 2, PROT_EXEC, 0},
    {"mprotect", 2, PROT_EXEC, 0},
    {"prctl", 0, whole_int, PR_SET_NAME},
    {"prctl", 0, whole_int, set_vma_name},
});

constexpr auto attaching_rules = std::to_array<CallRule>({
    {"socket", 0, whole_int, AF_UNIX},
    {"fcntl", 1, whole_int, F_GETFL},
    {"fcntl", 1, whole_int, F_SETFL},
    {"fcntl", 1, whole_int, F_GETFD},
    {"fcntl", 1, whole_int, F_SETFD},
    {"fcntl", 1, whole_int, F_GET_SEALS},
    {"fcntl", 1, whole_int, F_DUPFD_CLOEXEC},
    {"ioctl", 1, whole_int, SIOCOUTQ},
    {"ioctl", 1, whole_int, FIONREAD},
    {"ioctl", 1, whole_int, FIONBIO},
});

constexpr auto terminal_rules = std::to_array<CallRule>({
    {"ioctl", 1, whole_int, TCGETS},
    {"ioctl", 1, whole_int, TCSETS},
    {"ioctl", 1, whole_int, TCSETSW},
    {"ioctl", 1, whole_int, TCSETSF},
    {"ioctl", 1, whole_int, TIOCGWINSZ},
});

/// A connection whose closing may block is closed by a thread of its own.
constexpr auto looping_rules = std::to_array<CallRule>({
    {"clone", clone_flags_argument, namespaces | CLONE_THREAD, CLONE_THREAD},
});

constexpr auto serving_rules = std::to_array<CallRule>({
    {"socketpair", 0, whole_int, AF_UNIX},
    {"fcntl", 1, whole_int, F_ADD_SEALS},
    {"fchmod", 1, special_modes, 0},
    {"open", 1, not_reading, O_RDONLY},
    {"openat", 2, not_reading, O_RDONLY},
    // Limits of this process only.
    {"prlimit64", 0, whole_int, 0},
});

/// <linux/kvm.h> has a list of unknown length in it, which is not C++: 8 bytes stand before the list.
constexpr std::uint64_t set_gsi_routing = _IOC(_IOC_WRITE, KVMIO, 0x6a, 8);

constexpr auto device_requests = std::to_array<std::uint64_t>(
    {KVM_SET_USER_MEMORY_REGION, KVM_IRQFD, KVM_IOEVENTFD, set_gsi_routing, KVM_SIGNAL_MSI});
#ifdef KVM_GET_REGS
constexpr auto processor_requests = std::to_array<std::uint64_t>({KVM_RUN, KVM_INTERRUPT, KVM_GET_REGS});
constexpr auto main_requests = std::to_array<std::uint64_t>({KVM_GET_DIRTY_LOG, KVM_GET_REGS});
#else
constexpr auto processor_requests = std::to_array<std::uint64_t>({KVM_RUN, KVM_INTERRUPT});
constexpr auto main_requests = std::to_array<std::uint64_t>({KVM_GET_DIRTY_LOG});
#endif

void add(FilterPlan& plan, std::span<const CallRule> rules) {
    plan.rules.insert(plan.rules.end(), rules.begin(), rules.end());
}

void add_requests(FilterPlan& plan, std::span<const std::uint64_t> requests) {
    for (const std::uint64_t request : requests)
        plan.rules.push_back({.call = "ioctl", .argument = 1, .mask = whole_int, .value = request});
}

FilterPlan plan_of(ThreadKind kind) {
    FilterPlan plan{.calls = {usual}};
    // Its own threads only: the kick of a processor, an abort.
    plan.rules.push_back({.call = "tgkill",
                          .argument = 0,
                          .mask = whole_int,
                          .value = static_cast<std::uint64_t>(::getpid())});
    add(plan, usual_rules);
    if (kind != ThreadKind::service) add_requests(plan, device_requests);
    if (kind != ThreadKind::clock) {
        plan.calls.push_back(attaching);
        add(plan, attaching_rules);
    }
    switch (kind) {
        case ThreadKind::processor:
            plan.first = "ioctl";
            plan.calls.push_back(ringing);
            add_requests(plan, processor_requests);
            break;
        case ThreadKind::clock:
        case ThreadKind::watch: break;
        case ThreadKind::service:
            plan.calls.insert(plan.calls.end(), {looping, serving});
            add(plan, looping_rules);
            add(plan, serving_rules);
            break;
        case ThreadKind::main:
            plan.calls.insert(plan.calls.end(), {looping, ending});
            add(plan, looping_rules);
            add(plan, terminal_rules);
            add_requests(plan, main_requests);
            break;
    }
    return plan;
}

}  // namespace

std::string_view to_string(ThreadKind kind) {
    switch (kind) {
        case ThreadKind::processor: return "processor";
        case ThreadKind::clock: return "clock";
        case ThreadKind::watch: return "watch";
        case ThreadKind::service: return "service";
        case ThreadKind::main: return "main";
    }
    return "unknown";
}

Result<FilterProgram> make_thread_filter(ThreadKind kind, FilterAnswer answer) {
    FilterPlan plan = plan_of(kind);
    plan.answer = answer;
    auto program = FilterProgram::create(plan);
    if (!program) return std::move(program).error().with_context(std::string{to_string(kind)} + " threads");
    return program;
}

}  // namespace guestmem
