// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <utility>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// Who uses a file or folder: flock(2) as an owner.
///
/// Concepts: who uses a thing holds a shared lock of it; who changes or removes it takes the exclusive one, and gets
/// it when nobody uses it. A lock belongs to the open file, which all copies of a descriptor share: those of
/// Fd::duplicate(), of fork(2), of an exec that the descriptor survives, and those sent through a socket. It is gone
/// when the last of them is closed, by whatever end of their processes: kill -9 needs no cleaning up.
/// Contract: a FileLock owns its descriptor and closes it. It never unlocks: a program that inherited the descriptor
/// keeps the lock, which is what a virtual machine needs that outlives who started it. Who inherits one calls
/// try_shared() or try_exclusive() as its holder did, and owns it. A descriptor whose open file holds the other kind
/// is converted, and may be left with none when that fails (flock(2)). Locks bind only those who ask for them.
/// Threads: any; a FileLock one at a time.
/// Lifetime: what keeps a lock alive is seen in /proc/locks and /proc/PID/fdinfo.
/// Limits: files and folders that may be opened for reading. is_locked_by_others() needs /proc.
/// Cost: one call; where somebody else has it, lock_attempts calls with 1 ms between them.
/// Example:
///     auto use = GM_TRY(FileLock::try_shared(GM_TRY(open_folder("store/web"))));
///     if (!use) return Error{Errc::busy, "template 'web' is being removed"};
/// Known holes: is_locked_by_others() holds the exclusive lock for some microseconds, and who tries at this moment
/// tries again; only those who ask without a pause in several processes can make it get nothing. A descriptor that
/// another thread's fork(2) copied lives until that child's exec or end, and the lock with it. The file may have
/// been renamed or removed between its opening and its lock: compare path_facts() with file_facts() after. Network
/// file systems make these locks byte ranges of a server, or keep them in one machine.

namespace guestmem {

/// How often a lock that somebody has is tried: against those who only look whether there is one.
inline constexpr int lock_attempts = 4;

class FileLock {
public:
    /// Nothing when somebody has the exclusive one; `file` is closed then.
    [[nodiscard]] static Result<std::optional<FileLock>> try_shared(Fd file);
    /// Nothing when somebody has any; `file` is closed then.
    [[nodiscard]] static Result<std::optional<FileLock>> try_exclusive(Fd file);

    [[nodiscard]] bool is_exclusive() const { return is_exclusive_; }
    /// The descriptor that carries it: to read the file, or to hand the lock to a child.
    [[nodiscard]] const Fd& file() const { return file_; }

private:
    FileLock(Fd file, bool is_exclusive) : file_(std::move(file)), is_exclusive_(is_exclusive) {}
    static Result<std::optional<FileLock>> create(Fd file, bool is_exclusive);

    Fd file_;
    bool is_exclusive_;
};

/// Whether another open file of the same file or folder holds a lock of either kind. One that holds a lock itself
/// is an error (Errc::invalid_argument): ask through a descriptor that was opened for it.
[[nodiscard]] Result<bool> is_locked_by_others(FdView file);

}  // namespace guestmem
