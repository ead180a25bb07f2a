// SPDX-License-Identifier: Apache-2.0
#pragma once

// Memory above 4 GiB, mapped to itself when it is needed.
//
// Contract: reach() is true when the range can be accessed; what lies below 4 GiB always can.
// Limits: addresses below 512 GiB, ranges in up to `max_high_gib` different GiB. Beyond: false.
// Cost: one table entry per 2 MiB: nothing is filled in that nobody asked for.

#include <cstddef>
#include <cstdint>

namespace guestmem::payload {

inline constexpr std::size_t max_high_gib = 16;

bool reach(std::uint64_t address, std::uint64_t size_bytes);

}  // namespace guestmem::payload
