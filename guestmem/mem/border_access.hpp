// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include "guestmem/mem/memory_map.hpp"

/// Integers that lie across the border of two regions, or in the last bytes of one, without a walk over pieces.
///
/// Concepts: the index has room for 8 bytes at all but the last 7 offsets of a region. What begins there is joined from
/// the region's last 8 bytes and the first 8 of the region that follows.
/// Contract: true when it was done. False when it was not: a hole, a device, ROM, a fault, small regions; then the
/// slow way does it, or says why not. A write that faults half way has written, and marked, the bytes before the lost
/// page, which the slow way writes again.
/// Threads: any; as MapView.
/// Cost: two lookups and two loads, about 5 ns.

namespace guestmem {

/// Reads `size_bytes` (at most 8) into the low bytes of `word`. `low` is what the index gives for the address.
[[nodiscard]] bool read_across_border(const MemoryMap& map, const LookupEntry& low, std::uint64_t address,
                                      std::size_t size_bytes, std::uint64_t& word);
/// Writes the low `size_bytes` (at most 8) of `word`, and marks them dirty.
[[nodiscard]] bool write_across_border(const MemoryMap& map, const LookupEntry& low, std::uint64_t address,
                                       std::size_t size_bytes, std::uint64_t word);

}  // namespace guestmem
