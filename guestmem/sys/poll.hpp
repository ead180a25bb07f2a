// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// Waiting without an event loop, for tools that do one thing.
///
/// Contract: `timeout_ms` -1 waits for ever. A hang-up counts as readable.
/// Threads: any.

namespace guestmem {

/// Whether the descriptor becomes readable within the time.
[[nodiscard]] Result<bool> poll_readable(FdView fd, int timeout_ms);

/// The indexes of those that are readable; empty when the time passed first. A closed FdView is passed over.
[[nodiscard]] Result<std::vector<std::size_t>> poll_readable(std::span<const FdView> fds, int timeout_ms);

}  // namespace guestmem
