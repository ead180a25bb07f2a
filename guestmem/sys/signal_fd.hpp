// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <initializer_list>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// Signals as a descriptor, for a process that waits by poll alone and has no event loop.
///
/// Contract: the signals are blocked in the calling thread, which has to be the only one; the descriptor is readable
/// while one of them waits. Nobody reads it: the first one is the last.
/// Threads: one at a time.

namespace guestmem {

[[nodiscard]] Result<Fd> watch_signals(std::initializer_list<int> signals);
/// They do nothing to this process from here on.
void ignore_signals(std::initializer_list<int> signals) noexcept;

}  // namespace guestmem
