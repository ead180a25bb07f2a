// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "bench/mem/measure.hpp"
#include "bench/mem/workload.hpp"

/// The works of the comparison, done with this library, and the limits: the same through raw pointers.
///
/// Concepts: each function measures a group of works on one layout and prints a line per figure. Runs go through a
/// GuestMemory, the handle of one reader; jumps through a MapView, which remembers nothing.
/// Threads: one at a time.

namespace guestmem::bench {

// Raw pointers (raw_limits.cpp).
void measure_raw_objects(const Row& row, std::span<std::byte* const> hosts, Budget budget);
void measure_raw_copies(const Row& row, std::string_view name, std::span<std::byte* const> hosts,
                        std::span<std::byte> buffer, Budget budget);

// Through addresses (access_works.cpp).
void measure_objects(LayoutKind layout, std::uint64_t regions, Budget budget);
void measure_two_threads(std::uint64_t regions, Budget budget);
void measure_straddling(std::uint64_t regions, Budget budget);
void measure_copies(Budget budget);

// Around them (map_works.cpp).
void measure_dirty_log(Budget budget);
void measure_snapshot(Budget budget);
void measure_build(LayoutKind layout, Budget budget);
void measure_guarded(LayoutKind layout, Budget budget);
void measure_fault(Budget budget);

}  // namespace guestmem::bench
