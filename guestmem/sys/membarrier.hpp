// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/base/result.hpp"

/// A full memory barrier in every other running thread of this process, paid by the one who asks for it.
///
/// Concepts: two threads that each store one thing and then load another need a full barrier in both, or both may
/// miss the other's store. Where one side runs a million times for each time of the other, the kernel puts the
/// barrier of the frequent side in for it (membarrier(2), PRIVATE_EXPEDITED). The frequent side keeps a compiler
/// barrier only: std::atomic_signal_fence.
/// Contract: when membarrier() succeeds, each other thread of the process has passed a point between its begin and
/// its end at which all of its earlier loads and stores came before all of its later ones; and so has the caller.
/// prepare_membarrier() has to have been true in this process. It is inherited by fork and undone by exec.
/// Threads: any.
/// Limits: reaches the threads of this process only. Kernels before 4.14, some emulators and some seccomp filters do
/// not have it.
/// Cost: membarrier() 0.25 us while other processors are idle or run others, about 10 us while they run our threads.
/// prepare_membarrier() one system call until it succeeded once; that one waits for a grace period (milliseconds) in a
/// process with threads.

namespace guestmem {

/// Registers this process. False: it cannot be had here, and the frequent side has to do without.
[[nodiscard]] bool prepare_membarrier();

/// The barrier. ENOMEM can pass; EPERM (not prepared, or a filter) and ENOSYS do not.
[[nodiscard]] Result<void> membarrier();

}  // namespace guestmem
