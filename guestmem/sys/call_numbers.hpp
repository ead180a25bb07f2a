// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string_view>

/// The numbers of system calls, by name: those that this project's filters speak of.
///
/// Concepts: an architecture lacks some calls (arm64 has openat alone, no open), and this table knows that from the
/// kernel's headers at compile time.
/// Contract: is_known_call() is false for a name that is not in the table: a typing error, or a call that is to be
/// added to it. call_number() is nothing for a call that this architecture, or the headers it was compiled with, has
/// not got.
/// Threads: any.
/// Cost: a binary search in a constant table.

namespace guestmem {

[[nodiscard]] bool is_known_call(std::string_view name);
[[nodiscard]] std::optional<unsigned> call_number(std::string_view name);

}  // namespace guestmem
