// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>

/// What a subcommand does, once its words are read.
///
/// Contract: reads the options that the parser filled in; to be called after parsing. Gives the exit code.
/// Threads: one at a time.

namespace CLI {
class App;
}

namespace guestmem::cli {

using Action = std::function<int()>;

}  // namespace guestmem::cli
