// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/cli/action.hpp"

/// The words of `guestmem run`.
///
/// Contract: the returned function reads the options that the parser filled in; call it after parsing.
/// Threads: one at a time.

namespace guestmem::cli {

// What a machine's end is as an exit code; docs/guide/run.md lists them.
inline constexpr int exit_guest_reset = 3;
inline constexpr int exit_guest_gave_up = 7;
inline constexpr int exit_guest_code = 32;  ///< and the low 5 bits of what it wrote to the exit port
inline constexpr int exit_not_started = 64;
inline constexpr int exit_configuration = 65;
inline constexpr int exit_machine_failed = 96;

Action describe_run(CLI::App& app);

}  // namespace guestmem::cli
