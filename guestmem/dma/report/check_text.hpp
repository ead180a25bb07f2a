// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "guestmem/dma/check.hpp"

/// Findings as one page for people and as JSON for programs.
///
/// Contract: each finding says what is so, why it matters and how to change it; a machine without findings takes one
/// line. The text has no control character but the line end, whatever the machine's names are.
/// Threads: any.

namespace guestmem::dma {

[[nodiscard]] std::string to_text(const std::vector<Finding>& findings, const Inventory& inventory);
[[nodiscard]] std::string to_json(const std::vector<Finding>& findings);

}  // namespace guestmem::dma
