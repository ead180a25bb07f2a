// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Exit codes, the same for every subcommand. docs/guide/share.md lists them.
///
/// Threads: any.

namespace guestmem::cli {

inline constexpr int exit_ok = 0;
inline constexpr int exit_failed = 1;
inline constexpr int exit_usage = 2;
inline constexpr int exit_timeout = 3;

}  // namespace guestmem::cli
