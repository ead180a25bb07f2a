// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/faults.hpp"

#include <array>
#include <csignal>

#include "guestmem/base/check.hpp"

namespace guestmem {
namespace detail {
constinit std::atomic<FaultInjector*> active_injector{nullptr};
}

namespace {

struct CallFacts {
    std::string_view name;
    int os_error;
};

constexpr std::array<CallFacts, static_cast<std::size_t>(SysCall::count)> facts{{
    {"open", EMFILE},         {"read", EIO},          {"write", EIO},           {"stat", EACCES},
    {"memfd_create", EMFILE}, {"ftruncate", EINVAL},  {"fallocate", ENOSPC},    {"fchmod", EPERM},
    {"chown", EPERM},         {"add_seals", EBUSY},   {"get_seals", EINVAL},    {"mmap", ENOMEM},
    {"eventfd", EMFILE},      {"socket", EMFILE},     {"socketpair", EMFILE},   {"bind", EACCES},
    {"listen", EADDRINUSE},   {"accept", EMFILE},     {"connect", EACCES},      {"sendmsg", ENOBUFS},
    {"recvmsg", ECONNRESET},  {"setsockopt", ENOMEM}, {"getsockopt", ENOBUFS},  {"ioctl", EINVAL},
    {"poll", ENOMEM},         {"dup", EMFILE},        {"flock", ENOLCK},        {"rename", EXDEV},
    {"event_loop", ENOMEM},   {"aio", EAGAIN},        {"membarrier", ENOMEM},   {"readv", EIO},
    {"writev", EIO},          {"sigaction", EINVAL},  {"sigmask", EINVAL},      {"access", EIO},
    {"unlink", EPERM},        {"madvise", ENOMEM},    {"mbind", EIO},           {"get_mempolicy", EFAULT},
    {"getrlimit", EINVAL},    {"capget", EPERM},      {"getrandom", ENOSYS},    {"mkdir", ENOSPC},
    {"getdents", EIO},        {"lseek", EIO},         {"fsync", EIO},           {"copy_file_range", ENOSPC},
    {"spawn", EAGAIN},        {"pidfd_open", EMFILE}, {"waitpid", ECHILD},      {"kill", EPERM},
    {"userfaultfd", EMFILE},  {"mprotect", ENOMEM},   {"fork", EAGAIN},         {"epoll", EMFILE},
    {"signalfd", EMFILE},     {"notify", ENOBUFS},    {"passed_fds", EINVAL},   {"set_user", EAGAIN},
    {"prctl", EINVAL},        {"setrlimit", EPERM},   {"seccomp", EINVAL},      {"readlink", EACCES},
    {"close_range", ENOMEM},  {"landlock", ENOMEM},   {"set_scheduler", EPERM},
}};

}  // namespace

std::string_view to_string(SysCall call) { return facts.at(static_cast<std::size_t>(call)).name; }

int plausible_errno(SysCall call) { return facts.at(static_cast<std::size_t>(call)).os_error; }

FaultInjector::FaultInjector(std::uint64_t nth, Options options) : nth_(nth), options_(options) {
    FaultInjector* expected = nullptr;
    GM_CHECK(detail::active_injector.compare_exchange_strong(expected, this));
}

FaultInjector::~FaultInjector() { detail::active_injector.store(nullptr, std::memory_order_release); }

int FaultInjector::decide(SysCall call) {
    if (options_.only != SysCall::count && options_.only != call) return 0;
    const std::uint64_t turn = seen_.fetch_add(1, std::memory_order_relaxed);
    if (turn < nth_ || turn - nth_ >= options_.repeat) return 0;
    fired_.store(call, std::memory_order_relaxed);
    if (options_.is_deadly) ::raise(SIGKILL);
    return options_.os_error != 0 ? options_.os_error : plausible_errno(call);
}

}  // namespace guestmem
