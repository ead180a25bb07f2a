// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "guestmem/base/result.hpp"

/// Where and how urgently the calling thread runs.
///
/// Contract: a CPU that this process may not use, or that is not there, is an error. Real-time policies need
/// CAP_SYS_NICE or RLIMIT_RTPRIO, and the error says so.
/// Threads: any; each call is for its own.

namespace guestmem {

enum class ThreadPolicy : std::uint8_t { usual, round_robin, fifo };

/// On these CPUs of the host alone.
[[nodiscard]] Result<void> run_thread_on(std::span<const std::uint32_t> cpus);
/// `priority` 1 to 99 for a real-time policy; the usual one has none.
[[nodiscard]] Result<void> set_thread_policy(ThreadPolicy policy, std::uint32_t priority);

}  // namespace guestmem
