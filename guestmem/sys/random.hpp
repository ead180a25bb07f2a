// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>

#include "guestmem/base/result.hpp"

/// Random bytes of the kernel.
///
/// Contract: fit for names that nobody guesses and for keys; waits only when the machine has just started.
/// Threads: any.

namespace guestmem {

[[nodiscard]] Result<void> fill_randomly(std::span<std::byte> bytes);

}  // namespace guestmem
