// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/file_lock.hpp"

#include <fmt/format.h>
#include <sys/file.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <string>
#include <thread>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

/// Of /proc/self/fdinfo/N: some lines, and one for each lock of the open file.
constexpr std::size_t max_fdinfo_bytes = 64 * 1024;

/// False when somebody else has it.
Result<bool> lock(FdView file, int operation) {
    const int status =
        checked_call(SysCall::flock, [&] { return ::flock(file.number(), operation | LOCK_NB); });
    if (status == 0) return true;
    if (errno == EWOULDBLOCK) return false;
    return Error::from_errno(errno, fmt::format("lock descriptor {}", file.number()));
}

}  // namespace

Result<std::optional<FileLock>> FileLock::create(Fd file, bool is_exclusive) {
    for (int attempt = 1;; ++attempt) {
        if (GM_TRY(lock(file, is_exclusive ? LOCK_EX : LOCK_SH)))
            return std::optional{FileLock{std::move(file), is_exclusive}};
        if (attempt == lock_attempts) return std::nullopt;
        std::this_thread::sleep_for(std::chrono::milliseconds{1});
    }
}

Result<std::optional<FileLock>> FileLock::try_shared(Fd file) { return create(std::move(file), false); }

Result<std::optional<FileLock>> FileLock::try_exclusive(Fd file) { return create(std::move(file), true); }

Result<bool> is_locked_by_others(FdView file) {
    const std::string what = fmt::format("ask who has locked descriptor {}", file.number());
    const std::string facts = GM_TRY_CONTEXT(
        read_text_file(fmt::format("/proc/self/fdinfo/{}", file.number()), max_fdinfo_bytes), what);
    if (facts.contains("FLOCK"))
        return Error{Errc::invalid_argument,
                     fmt::format("{}: it holds a lock itself: ask through another one", what)};
    // Another open file, so that a lock that `file` gets meanwhile is never touched.
    const Fd probe =
        GM_TRY_CONTEXT(open_file(fmt::format("/proc/self/fd/{}", file.number()), OpenMode::read), what);
    return !GM_TRY_CONTEXT(lock(probe, LOCK_EX), what);
}

}  // namespace guestmem
