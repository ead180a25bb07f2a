// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/cli/action.hpp"

/// The words of each `guestmem backend` subcommand: declares its options on a parser and gives what runs it.
///
/// Threads: one at a time.

namespace guestmem::cli {

Action describe_backend_explain(CLI::App& app);
Action describe_backend_make(CLI::App& app);
Action describe_backend_usage(CLI::App& app);

}  // namespace guestmem::cli
