// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "guestmem/base/result.hpp"

/// How every subcommand ends: results on standard output, errors on standard error, one exit code each.
///
/// Contract: text from shares and peers passes through to_printable() before it reaches a terminal.
/// Threads: one at a time.

namespace guestmem::cli {

/// Prints "guestmem: sentence" and gives the exit code of the error.
int report(const Error& error);
/// Ends the program with exit_failed when standard output takes no more: half a result is none.
void print(std::string_view text);
/// Bytes beyond printable ASCII as \xNN, a backslash as \\.
[[nodiscard]] std::string to_printable(std::string_view bytes);

}  // namespace guestmem::cli
