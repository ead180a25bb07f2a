// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "guestmem/dma/plan.hpp"

/// A plan as text for people and as JSON for programs.
///
/// Contract: the text has no control character but the line end, whatever the names are; problems come last, with the
/// commands that would mend them. In the JSON addresses are texts, "0x1000". docs/guide/dma.md shows both.
/// Threads: any.

namespace guestmem::dma {

/// Of each domain the first `most_mappings` mappings, and how many there are more.
[[nodiscard]] std::string to_text(const Plan& plan, const std::string& grants_file,
                                  std::size_t most_mappings = 16);
[[nodiscard]] std::string to_json(const Plan& plan, const std::string& grants_file);

}  // namespace guestmem::dma
