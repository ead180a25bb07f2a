// SPDX-License-Identifier: Apache-2.0
#pragma once

/// GM_CHECK: our own broken invariants.
///
/// Contract: always on, in every build. A failed check prints the condition and its place on standard
/// error and aborts. No byte that a guest, a peer, a file or a user can choose may reach a GM_CHECK:
/// those are values of Result (result.hpp).
/// Threads: any.

namespace guestmem {

/// Prints "file:line: check failed: condition" and aborts.
[[noreturn]] void check_failed(const char* condition, const char* file, int line) noexcept;

}  // namespace guestmem

#define GM_CHECK(condition)                              \
    (static_cast<bool>(condition) ? static_cast<void>(0) \
                                  : ::guestmem::check_failed(#condition, __FILE__, __LINE__))
