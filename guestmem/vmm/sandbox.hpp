// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/thread_filter.hpp"

/// What a machine's process gives up before its guest runs: each of its threads for itself.
///
/// Concepts: a machine is made with the rights of who started it, and runs without them. A guest that finds a hole in
/// a device is then in a thread that can do little more than the guest: it has the machine's descriptors, its memory,
/// and the system calls of its kind of thread (thread_filter.hpp).
/// Contract: after enter() the calling thread has no capability and no way to one, no new privileges, the filter of
/// its kind for good, and, where the kernel has Landlock, a fence: the thread of the machine's own share service opens
/// /proc, /sys and /dev/null for reading, all other kinds open nothing at all. What the filter forbids ends the
/// process at once (SIGSYS): no handler runs, a terminal is left in the machine's mode.
/// The process stays dumpable: guest memory is in no core file unless that is asked for, and what is left of one helps
/// to mend the program. RLIMIT_CORE is the caller's. A machine that became another user is not dumpable (Linux).
/// Threads: any; each enters once.
/// Limits: builds whose instruments make system calls of their own have neither filter nor fence: obstacle() says
/// why. Whoever may trace this user's processes is outside of all this.
/// Cost: a filter is made at the first entry of its kind, some 0.3 ms; a call costs some 120 ns more.
/// Example:
///     const auto sandbox = std::make_shared<const Sandbox>();
///     GM_TRY(sandbox->enter(ThreadKind::clock));
/// Known holes: a processor's thread connects to any socket of this host that its user may: a share is attached when
/// the guest asks for it. Only AF_UNIX, and services ask the kernel who calls.

namespace guestmem::vmm {

class Sandbox {
public:
    explicit Sandbox(FilterAnswer answer = FilterAnswer::kill) : answer_(answer) {}

    [[nodiscard]] Result<void> enter(ThreadKind kind) const;
    /// Why the threads have neither filter nor fence, though all else; nothing where they have both.
    [[nodiscard]] static std::optional<std::string> obstacle() { return find_filter_obstacle(); }

private:
    [[nodiscard]] Result<std::shared_ptr<const FilterProgram>> filter_of(ThreadKind kind) const;

    FilterAnswer answer_;
    mutable std::mutex mutex_;
    mutable std::array<std::shared_ptr<const FilterProgram>, count_thread_kinds> filters_;
};

/// Whether guest memory is in core files of the process.
enum class MemoryDump : std::uint8_t { left_out, included };

/// Children of the process have a hole where these bytes are, and core files too unless they are included.
[[nodiscard]] Result<void> keep_to_ourselves(std::span<std::byte> bytes, MemoryDump dump);

}  // namespace guestmem::vmm
