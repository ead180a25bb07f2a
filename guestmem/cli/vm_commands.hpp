// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/cli/action.hpp"

/// The words of each `guestmem vm ...` command.
///
/// Contract: the returned functions read the options that the parser filled in; call them after parsing.
/// Threads: one at a time.

namespace guestmem::cli {

Action describe_vm_list(CLI::App& app);
Action describe_vm_stat(CLI::App& app);
Action describe_vm_map(CLI::App& app);
Action describe_vm_pause(CLI::App& app);
Action describe_vm_resume(CLI::App& app);
Action describe_vm_stop(CLI::App& app);
Action describe_vm_power_button(CLI::App& app);
Action describe_vm_attach(CLI::App& app);
Action describe_vm_detach(CLI::App& app);
Action describe_vm_dirty(CLI::App& app);

}  // namespace guestmem::cli
