// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

/// What the forks of a template take, as a table that is drawn again and again.
///
/// Threads: one at a time.

namespace guestmem::cli {

struct LiveOptions {
    double interval_s = 1;
    std::uint64_t count = 0;  ///< of tables; 0: until SIGINT
};

/// Its exit code.
int show_live(const std::string& folder, bool json, const LiveOptions& options);

}  // namespace guestmem::cli
