// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/cli/action.hpp"

/// The words of each `guestmem dma ...` command.
///
/// Contract: the returned functions read the options that the parser filled in; call them after parsing.
/// Threads: one at a time.

namespace guestmem::cli {

Action describe_dma_discover(CLI::App& app);
Action describe_dma_check(CLI::App& app);
Action describe_dma_plan(CLI::App& app);
Action describe_dma_capture(CLI::App& app);

}  // namespace guestmem::cli
