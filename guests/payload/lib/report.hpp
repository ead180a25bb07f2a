// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a payload says about what it found: one line per check, a last line, an exit status.
//
// Contract: "ok NAME", "fail NAME: expected X got Y"; other lines are notes. "done N" is the last line, N counts
//   the checks. Then the value `exit_passed` or `exit_failed` is written to port 0xf4; QEMU's isa-debug-exit ends
//   with 2 * value + 1 (33, 35, and 37 for a processor exception). Where the port does nothing, the processor
//   halts for good.

#include <cstdint>

#include "guests/payload/lib/console.hpp"

namespace guestmem::payload {

inline constexpr std::uint8_t exit_passed = 16;
inline constexpr std::uint8_t exit_failed = 17;
inline constexpr std::uint8_t exit_fault = 18;

// Each says whether it was so, for a payload that cannot go on.
bool check(Text name, bool is_so);
bool check_equal(Text name, std::uint64_t expected, std::uint64_t got);
bool check_in(Text name, std::uint64_t low, std::uint64_t high, std::uint64_t got);

[[noreturn]] void leave(std::uint8_t value);
// The last line, and the end.
[[noreturn]] void finish();

}  // namespace guestmem::payload
