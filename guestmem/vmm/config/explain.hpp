// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "guestmem/vmm/config/vm_config.hpp"

/// A plan as text again: for `dryrun`, for `guestmem run --explain`, for a program that reads JSON.
///
/// Contract: explain_text() is a `.qvmconf` text in one form: lengths with the largest unit, addresses in hexadecimal,
/// options in one order, quotes where they are needed. read_text() of it gives an equal plan. What was filled in, and
/// where memory lies, stands in comments. explain_json() has the same facts, filled in and written, each with the
/// place of its line; sizes in bytes, addresses as numbers.
/// Threads: any.

namespace guestmem::vmm {

[[nodiscard]] std::string explain_text(const VmConfig& config);
/// One object, indented by two blanks: system, dryrun, safety, settings, memory, cpus, loads, cmdline, vdevs.
[[nodiscard]] std::string explain_json(const VmConfig& config, const Sources& sources);

}  // namespace guestmem::vmm
