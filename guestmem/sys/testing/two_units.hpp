// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

#include "guestmem/sys/guarded.hpp"

/// Guarded accesses in functions that several translation units have and the linker keeps once.
///
/// Concepts: a compiler emits an inline function that it does not inline into each unit that calls it; the linker
/// takes one copy and drops the others. The lines of the fault table that belong to a dropped copy have to go with
/// it: otherwise the program does not link.
/// Contract: included by guarded_test.cpp and fault_guard_test.cpp; that their program links is half of the proof,
/// that both see a false the other half.
/// Threads: any.

namespace guestmem::testing {

[[gnu::noinline]] inline bool load_in_two_units(const std::byte* from, std::uint64_t& value) {
    return try_load(from, value);
}

template <GuardedInteger T>
[[gnu::noinline]] bool change_in_two_units(std::byte* at, T operand) {
    T previous{};
    return try_fetch_or(at, operand, previous) || try_store(at, operand);
}

}  // namespace guestmem::testing
