// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// A process that runs a function of this program and outlives whoever started it: a fork without exec.
///
/// Concepts: a program under a filter that forbids execve(2) can still fork. process.hpp is for children that are
/// waited for.
/// Contract: the process is nobody's child (init's, or the next subreaper's) and leads a session of its own. It has
/// the kept descriptors under their numbers and no others; its standard streams lead to /dev/null, its working folder
/// is "/". No signal is blocked, each has its default disposition. Shared mappings are gone, so that it pins no memory
/// but what its descriptors lead to; private memory is a copy. `body` runs in it; what it returns is the exit status.
/// start_detached() returns its number once `body` has called the function it is given: an error when it ended before,
/// or needs longer than detach_limit_ms. After an error, or the end of the starter, it ends in that function.
/// Threads: one at a time; other threads of this process are not in the new one. What they held locked stays
/// locked there, except for the heap: `body` keeps to what it owns.
/// Limits: Linux 5.9 (close_range). A seccomp filter of the starter holds for it too.
/// Cost: two forks, 1 ms and more where much private memory is mapped.
/// Known holes: its command line is that of the starter; only its short name (PR_SET_NAME, 15 bytes) is its own. It
/// stays in the starter's cgroup: a service manager that ends a whole cgroup ends it too.

namespace guestmem {

inline constexpr int detach_limit_ms = 20'000;

struct DetachOptions {
    std::string name;                   ///< what ps(1) shows as the command
    std::span<const FdView> kept = {};  ///< none of them a standard stream
};

/// `body` calls `announce_ready` once.
using DetachedBody = std::function<int(const std::function<void()>& announce_ready)>;
[[nodiscard]] Result<std::int32_t> start_detached(const DetachOptions& options, const DetachedBody& body);

}  // namespace guestmem
