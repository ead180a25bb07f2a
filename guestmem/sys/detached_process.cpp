// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/detached_process.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/close_range.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <limits>
#include <optional>
#include <string_view>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/unix_socket.hpp"

namespace guestmem {
namespace {

constexpr int exit_failed = 1;

bool close_from_to(unsigned first, unsigned last) {
    return first > last || ::syscall(SYS_close_range, first, last, 0U) == 0;
}

/// Everything from 3 on but these.
bool close_all_but(std::vector<int> kept) {
    std::ranges::sort(kept);
    unsigned next = STDERR_FILENO + 1;
    for (const int number : kept) {
        const auto at = static_cast<unsigned>(number);
        if (at > next && !close_from_to(next, at - 1)) return false;
        next = std::max(next, at + 1);
    }
    return close_from_to(next, std::numeric_limits<unsigned>::max());
}

bool lead_standard_streams_to_null() {
    const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0) return false;
    for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
        if (::dup2(null, stream) < 0) return false;
    ::close(null);
    return true;
}

void reset_signals() {
    struct sigaction usual{};
    usual.sa_handler = SIG_DFL;
    for (int signal = 1; signal < NSIG; ++signal) ::sigaction(signal, &usual, nullptr);
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
}

struct AddressRange {
    std::uintptr_t begin = 0;
    std::uintptr_t past = 0;
};

/// The mapping of a line of /proc/PID/maps ("7f00-7f10 r--s ..."), when it is shared.
std::optional<AddressRange> shared_mapping(std::string_view line) {
    const std::size_t dash = line.find('-');
    const std::size_t blank = line.find(' ');
    if (dash == std::string_view::npos || blank == std::string_view::npos || dash > blank)
        return std::nullopt;
    if (line.size() <= blank + 4 || line[blank + 4] != 's') return std::nullopt;
    AddressRange range;
    constexpr int hexadecimal = 16;
    const char* const text = line.data();
    const auto first = std::from_chars(text, text + dash, range.begin, hexadecimal);
    const auto second = std::from_chars(text + dash + 1, text + blank, range.past, hexadecimal);
    if (first.ec != std::errc{} || second.ec != std::errc{}) return std::nullopt;
    return range;
}

void unmap_shared_memory() {
    constexpr std::size_t limit_bytes = 64 * 1024 * 1024;
    const auto maps = read_text_file("/proc/self/maps", limit_bytes);
    if (!maps) return;  // it pins more memory than it has to, and works
    std::string_view rest = *maps;
    while (!rest.empty()) {
        const std::size_t end = std::min(rest.find('\n'), rest.size());
        if (const auto range = shared_mapping(rest.substr(0, end)))
            ::munmap(reinterpret_cast<void*>(range->begin), range->past - range->begin);
        rest.remove_prefix(std::min(end + 1, rest.size()));
    }
}

/// What the new process is, once it is nobody's child.
[[noreturn]] void live(const DetachOptions& options, const DetachedBody& body, const UnixStream& starter) {
    std::vector<int> kept{starter.view().number()};
    for (const FdView fd : options.kept) kept.push_back(fd.number());
    reset_signals();
    unmap_shared_memory();
    if (!lead_standard_streams_to_null() || !close_all_but(std::move(kept)) || ::chdir("/") != 0)
        ::_exit(exit_failed);
    ::prctl(PR_SET_NAME, options.name.c_str(), 0, 0, 0);
    const int status = body([&] {
        const std::int32_t own = ::getpid();
        std::byte go{};
        // A starter that is gone, or that took this for a failure, has not got a process that it does not know of.
        if (!starter.send(std::as_bytes(std::span{&own, 1}))) ::_exit(exit_failed);
        const auto answer = starter.receive(std::span{&go, 1});
        if (!answer || !*answer || (*answer)->count_bytes == 0) ::_exit(exit_failed);
        ::close(starter.view().number());
    });
    ::_exit(status);
}

/// In the child that the starter waits for.
[[noreturn]] void bear(const DetachOptions& options, const DetachedBody& body, const UnixStream& starter) {
    // An injector of faults belongs to the starter, which counts the calls that it makes itself.
    detail::active_injector.store(nullptr, std::memory_order_release);
    if (::setsid() < 0) ::_exit(exit_failed);
    const pid_t child = ::fork();
    if (child == 0) live(options, body, starter);
    ::_exit(child < 0 ? exit_failed : 0);
}

}  // namespace

Result<std::int32_t> start_detached(const DetachOptions& options, const DetachedBody& body) {
    for (const FdView fd : options.kept) GM_CHECK(fd.number() > STDERR_FILENO);
    const std::string what = fmt::format("start process {}", options.name);
    auto [ours, theirs] = GM_TRY_CONTEXT(UnixStream::pair(), what);
    const pid_t child = checked_call(SysCall::fork, [] { return ::fork(); });
    if (child < 0) return Error::from_errno(errno, what);
    if (child == 0) bear(options, body, theirs);
    theirs = UnixStream{};
    // No way out before this: a child that is not waited for stays as a zombie. Where the program ignores SIGCHLD the
    // kernel has done it.
    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }

    // Its number comes with its readiness, and the end of the socket with its end.
    std::int32_t number = 0;
    if (!GM_TRY_CONTEXT(ours.wait_readable(detach_limit_ms), what))
        return Error{Errc::timed_out,
                     fmt::format("{}: it is not ready within {} s", what, detach_limit_ms / 1000)};
    const auto received = GM_TRY_CONTEXT(ours.receive(std::as_writable_bytes(std::span{&number, 1})), what);
    if (!received || received->count_bytes != sizeof number)
        return Error{Errc::unavailable, fmt::format("{}: it ended before it was ready", what)};
    constexpr std::byte go{1};
    GM_TRY_CONTEXT(ours.send(std::span{&go, 1}), what);
    return number;
}

}  // namespace guestmem
