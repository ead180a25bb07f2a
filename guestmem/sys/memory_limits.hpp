// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "guestmem/base/result.hpp"

/// How much memory this process can have: what the host has left, its cgroups allow, and its own limits say.
///
/// Concepts: the headroom of a cgroup is its limit less its usage, where file cache does not count as used: the kernel
/// takes it back before it kills anybody. A process may have no more than the least headroom among its cgroup and all
/// above it, in the second version of cgroups and in the memory hierarchy of the first.
/// Contract: asked of the kernel at each call. A host without cgroups, a process in no memory cgroup, and a cgroup
/// without the files of the memory controller set no limit. A limit that is no number, a limit without a usage, and
/// a /proc/meminfo without the lines for it are errors; a cgroup without memory.stat has no file cache.
/// Threads: any.
/// Limits: /proc/self/cgroup of 64 KiB with paths of 4096 bytes, /proc/self/mountinfo of 16 MiB; more is an error.
/// Known holes: a snapshot: others take memory meanwhile. Swap is not counted, memory.high slows down and is not
/// asked for. A mount that does not show the process's own cgroup (another namespace's) is passed over. In the
/// first version a cgroup above counts also where memory.use_hierarchy is 0. Cache that is pinned or dirty counts as
/// cache. Limits of hugetlb cgroups are others.
/// Example:
///     const MemoryLimits limits = GM_TRY(memory_limits());
///     if (limits.cgroup_headroom_bytes && size_bytes > *limits.cgroup_headroom_bytes) ...

namespace guestmem {

inline constexpr std::uint64_t no_memory_limit = std::numeric_limits<std::uint64_t>::max();

/// vm.overcommit_memory: 0, 1, 2. Only `never` makes the commit limit count.
enum class Overcommit : std::uint8_t { heuristic, always, never };

struct MemoryLimits {
    std::uint64_t total_bytes = no_memory_limit;         ///< all memory and swap
    std::uint64_t available_bytes = 0;                   ///< MemAvailable
    std::optional<std::uint64_t> cgroup_headroom_bytes;  ///< nothing without a limit
    /// The folder of the cgroup that leaves so little, as this process sees it; empty without a limit.
    std::string cgroup_path;
    Overcommit overcommit = Overcommit::heuristic;
    std::uint64_t commit_left_bytes = 0;                  ///< CommitLimit less Committed_AS
    std::uint64_t address_space_bytes = no_memory_limit;  ///< RLIMIT_AS
    std::uint64_t file_size_bytes = no_memory_limit;      ///< RLIMIT_FSIZE
    std::uint64_t locked_bytes = no_memory_limit;         ///< RLIMIT_MEMLOCK; no limit with CAP_IPC_LOCK
};

/// `root` is where proc and the cgroups' mount points are looked for; the three RLIMIT_ are always this process's.
[[nodiscard]] Result<MemoryLimits> memory_limits(const std::string& root = "/");

}  // namespace guestmem
