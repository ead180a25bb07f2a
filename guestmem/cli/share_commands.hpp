// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/cli/action.hpp"

/// The words of each `guestmem share` subcommand: declares its options on a parser and gives what runs it.
///
/// Contract: the returned function reads the options that the parser filled in; call it after parsing.
/// Threads: one at a time.

namespace guestmem::cli {

Action describe_share_serve(CLI::App& app);
Action describe_share_check(CLI::App& app);
Action describe_share_attach_line(CLI::App& app);
Action describe_share_reload(CLI::App& app);
Action describe_share_retire(CLI::App& app);
Action describe_share_list(CLI::App& app);
Action describe_share_stat(CLI::App& app);
Action describe_share_write(CLI::App& app);
Action describe_share_read(CLI::App& app);
Action describe_share_ring(CLI::App& app);
Action describe_share_send(CLI::App& app);
Action describe_share_wait(CLI::App& app);
Action describe_share_client(CLI::App& app);

}  // namespace guestmem::cli
