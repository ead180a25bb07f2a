// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/cli/action.hpp"

/// The words of each `guestmem template` subcommand: declares its options on a parser and gives what runs it.
///
/// Threads: one at a time.

namespace guestmem::cli {

Action describe_template_make(CLI::App& app);
Action describe_template_list(CLI::App& app);
Action describe_template_show(CLI::App& app);
Action describe_template_verify(CLI::App& app);
Action describe_template_diff(CLI::App& app);
Action describe_template_flatten(CLI::App& app);
Action describe_template_fork(CLI::App& app);
Action describe_template_serve(CLI::App& app);
Action describe_template_send(CLI::App& app);
Action describe_template_receive(CLI::App& app);
Action describe_template_rm(CLI::App& app);

}  // namespace guestmem::cli
