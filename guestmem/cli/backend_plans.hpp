// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/backends/plan.hpp"

/// The backends of a command line: read, planned, and held against each other.
///
/// Contract: mistakes in the words are printed on standard error, all of them.
/// Threads: one at a time.

namespace guestmem::cli {

/// Nothing when any of the texts is wrong.
[[nodiscard]] std::optional<std::vector<BackendOptions>> read_backends(const std::vector<std::string>& texts);

struct PlannedBackends {
    std::vector<BackendPlan> plans;
    Problems together;

    [[nodiscard]] bool is_refused() const;
};

/// With `is_locked` also whether all of it may be locked.
[[nodiscard]] Result<PlannedBackends> plan_backends(const std::vector<BackendOptions>& all, bool is_locked);

/// "refused MESSAGE [CODE]" and the advice, a line each, for a terminal.
[[nodiscard]] std::string problems_text(const Problems& problems);

}  // namespace guestmem::cli
