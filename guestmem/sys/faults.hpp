// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <string_view>

/// Fault injection: make the Nth system call fail, for every N.
///
/// Concepts: each system call of this room goes through checked_call(), which asks the injector first. A
/// FaultInjector lives in a test; while it lives, calls are counted, and the one it names fails with an errno
/// that this call can really return.
/// Contract: without an injector a call costs one atomic load more. One injector at a time in a process.
/// Calls that release something (close, munmap) are not failed: their failure changes nothing for a caller.
/// Threads: any; the count is shared by all threads.
/// Example (a fault loop; the last round is the one without a fault):
///     for (std::uint64_t nth = 0;; ++nth) {
///         FaultInjector injector{nth};
///         auto memory = SealedMemory::create({.size_bytes = 4096});
///         if (!injector.has_fired()) break;
///         EXPECT_FALSE(memory);
///     }

namespace guestmem {

enum class SysCall : std::uint8_t {
    open,
    read,
    write,
    stat,
    memfd_create,
    ftruncate,
    fallocate,
    fchmod,
    chown,
    add_seals,
    get_seals,
    mmap,
    eventfd,
    socket,
    socketpair,
    bind,
    listen,
    accept,
    connect,
    sendmsg,
    recvmsg,
    setsockopt,
    getsockopt,
    ioctl,
    poll,
    dup,
    flock,
    rename,
    event_loop,
    aio,
    membarrier,
    readv,
    writev,
    sigaction,
    sigmask,
    access,
    unlink,
    madvise,
    mbind,
    get_mempolicy,
    getrlimit,
    capget,
    getrandom,
    mkdir,
    getdents,
    lseek,
    fsync,
    copy_file_range,
    spawn,
    pidfd_open,
    waitpid,
    kill,
    userfaultfd,
    mprotect,
    fork,
    epoll,
    signalfd,
    notify,
    passed_fds,
    set_user,
    prctl,
    setrlimit,
    seccomp,
    readlink,
    close_range,
    landlock,
    set_scheduler,
    count,
};

[[nodiscard]] std::string_view to_string(SysCall call);
/// The errno that an injected failure of this call shows.
[[nodiscard]] int plausible_errno(SysCall call);

class FaultInjector {
public:
    /// Fails call number `nth` (0 is the first one from here on). `only` narrows the count to one kind of
    /// call, `os_error` replaces the plausible errno, `repeat` fails that many calls in a row. With `is_deadly` the
    /// process is killed there instead (SIGKILL), before the call.
    struct Options {
        SysCall only = SysCall::count;
        int os_error = 0;
        std::uint64_t repeat = 1;
        bool is_deadly = false;
    };
    explicit FaultInjector(std::uint64_t nth) : FaultInjector(nth, Options{}) {}
    FaultInjector(std::uint64_t nth, Options options);
    FaultInjector(const FaultInjector&) = delete;
    FaultInjector& operator=(const FaultInjector&) = delete;
    ~FaultInjector();

    [[nodiscard]] bool has_fired() const { return fired_.load(std::memory_order_relaxed) != SysCall::count; }
    /// The call that was failed; SysCall::count when none was.
    [[nodiscard]] SysCall failed_call() const { return fired_.load(std::memory_order_relaxed); }

    /// 0, or the errno to pretend. For checked_call().
    [[nodiscard]] int decide(SysCall call);

private:
    std::uint64_t nth_;
    Options options_;
    std::atomic<std::uint64_t> seen_{0};
    std::atomic<SysCall> fired_{SysCall::count};
};

namespace detail {
extern constinit std::atomic<FaultInjector*> active_injector;
}

/// Runs `function`, which makes one system call and returns -1 with errno on failure. Interrupted calls
/// (EINTR) are repeated.
template <typename Function>
[[nodiscard]] auto checked_call(SysCall call, Function&& function) -> decltype(function()) {
    if (FaultInjector* injector = detail::active_injector.load(std::memory_order_acquire)) [[unlikely]] {
        if (const int pretended = injector->decide(call); pretended != 0) {
            errno = pretended;
            return -1;
        }
    }
    for (;;) {
        const auto result = function();
        if (result != -1 || errno != EINTR) return result;
    }
}

}  // namespace guestmem
