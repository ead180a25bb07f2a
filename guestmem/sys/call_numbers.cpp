// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/call_numbers.hpp"

#include <sys/syscall.h>

#include <algorithm>
#include <array>

namespace guestmem {
namespace {

struct Call {
    std::string_view name;
    std::string_view text;  ///< its number's, or the macro's name where the headers have no number
};

// The second macro is what expands the number's own macro.
#define GM_TEXT_OF(number) #number
#define GM_TEXT(number) GM_TEXT_OF(number)
#define GM_CALL(name) Call{#name, GM_TEXT(__NR_##name)},

constexpr auto sort_calls(auto calls) {
    std::ranges::sort(calls, {}, &Call::name);
    return calls;
}

// clang-format off
constexpr auto table = sort_calls(std::to_array<Call>({
    GM_CALL(accept) GM_CALL(accept4) GM_CALL(access) GM_CALL(bind) GM_CALL(brk) GM_CALL(capget)
    GM_CALL(chdir) GM_CALL(chmod) GM_CALL(chown) GM_CALL(clock_getres) GM_CALL(clock_gettime)
    GM_CALL(clock_nanosleep) GM_CALL(clone) GM_CALL(clone3) GM_CALL(close) GM_CALL(close_range)
    GM_CALL(connect) GM_CALL(dup) GM_CALL(dup2) GM_CALL(dup3) GM_CALL(epoll_create1) GM_CALL(epoll_ctl)
    GM_CALL(epoll_pwait) GM_CALL(epoll_pwait2) GM_CALL(epoll_wait) GM_CALL(eventfd2) GM_CALL(exit)
    GM_CALL(exit_group) GM_CALL(faccessat) GM_CALL(faccessat2) GM_CALL(fallocate) GM_CALL(fchmod)
    GM_CALL(fchmodat) GM_CALL(fchown) GM_CALL(fchownat) GM_CALL(fcntl) GM_CALL(fdatasync) GM_CALL(flock)
    GM_CALL(fork) GM_CALL(fstat) GM_CALL(fstatat64) GM_CALL(fstatfs) GM_CALL(fsync) GM_CALL(ftruncate)
    GM_CALL(futex) GM_CALL(futex_waitv) GM_CALL(get_robust_list) GM_CALL(getcwd) GM_CALL(getdents64)
    GM_CALL(getegid) GM_CALL(geteuid) GM_CALL(getgid) GM_CALL(getgroups) GM_CALL(getpeername)
    GM_CALL(getpgid) GM_CALL(getpgrp) GM_CALL(getpid) GM_CALL(getppid) GM_CALL(getrandom) GM_CALL(getresgid)
    GM_CALL(getresuid) GM_CALL(getrlimit) GM_CALL(getrusage) GM_CALL(getsid) GM_CALL(getsockname)
    GM_CALL(getsockopt) GM_CALL(gettid) GM_CALL(gettimeofday) GM_CALL(getuid) GM_CALL(io_destroy)
    GM_CALL(io_getevents) GM_CALL(io_setup) GM_CALL(io_submit) GM_CALL(ioctl) GM_CALL(kill) GM_CALL(lchown)
    GM_CALL(listen) GM_CALL(lseek) GM_CALL(lstat) GM_CALL(madvise) GM_CALL(membarrier) GM_CALL(memfd_create)
    GM_CALL(mkdir) GM_CALL(mkdirat) GM_CALL(mmap) GM_CALL(mmap2) GM_CALL(mprotect) GM_CALL(mremap)
    GM_CALL(munmap) GM_CALL(nanosleep) GM_CALL(newfstatat) GM_CALL(open) GM_CALL(openat) GM_CALL(pidfd_open)
    GM_CALL(pipe2) GM_CALL(poll) GM_CALL(ppoll) GM_CALL(prctl) GM_CALL(pread64) GM_CALL(preadv)
    GM_CALL(preadv2) GM_CALL(prlimit64) GM_CALL(pselect6) GM_CALL(pwrite64) GM_CALL(pwritev)
    GM_CALL(pwritev2) GM_CALL(read) GM_CALL(readlink) GM_CALL(readlinkat) GM_CALL(readv) GM_CALL(recvfrom)
    GM_CALL(recvmmsg) GM_CALL(recvmsg) GM_CALL(restart_syscall) GM_CALL(rseq) GM_CALL(rt_sigaction)
    GM_CALL(rt_sigpending) GM_CALL(rt_sigprocmask) GM_CALL(rt_sigreturn) GM_CALL(rt_sigtimedwait)
    GM_CALL(sched_getaffinity) GM_CALL(sched_yield) GM_CALL(select) GM_CALL(sendmmsg) GM_CALL(sendmsg)
    GM_CALL(sendto) GM_CALL(set_robust_list) GM_CALL(set_tid_address) GM_CALL(setsid) GM_CALL(setsockopt)
    GM_CALL(shutdown) GM_CALL(sigaltstack) GM_CALL(signalfd4) GM_CALL(socket) GM_CALL(socketpair)
    GM_CALL(stat) GM_CALL(statfs) GM_CALL(statx) GM_CALL(sysinfo) GM_CALL(tgkill) GM_CALL(time)
    GM_CALL(timerfd_create) GM_CALL(timerfd_gettime) GM_CALL(timerfd_settime) GM_CALL(times) GM_CALL(tkill)
    GM_CALL(umask) GM_CALL(uname) GM_CALL(unlink) GM_CALL(unlinkat) GM_CALL(vfork) GM_CALL(wait4)
    GM_CALL(waitid) GM_CALL(write) GM_CALL(writev)
}));
// clang-format on

constexpr const Call* find(std::string_view name) {
    const auto* const found = std::ranges::lower_bound(table, name, {}, &Call::name);
    return found != table.end() && found->name == name ? found : nullptr;
}

constexpr std::optional<unsigned> number_in(std::string_view text) {
    unsigned number = 0;
    for (const char digit : text) {
        if (digit < '0' || digit > '9') return std::nullopt;
        number = number * 10 + static_cast<unsigned>(digit - '0');
    }
    return number;
}

static_assert(number_in(find("read")->text).has_value() && number_in(find("exit_group")->text).has_value(),
              "the headers write numbers in a way that is not understood here");

}  // namespace

bool is_known_call(std::string_view name) { return find(name) != nullptr; }

std::optional<unsigned> call_number(std::string_view name) {
    const Call* const call = find(name);
    return call == nullptr ? std::nullopt : number_in(call->text);
}

}  // namespace guestmem
