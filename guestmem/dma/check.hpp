// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/dma/inventory.hpp"

/// "Am I protected?": what of a machine lets a device reach memory that it should not reach.
///
/// Concepts: a finding says what is so, why it matters and how to change it. A risk means that some device can reach
/// memory that nobody gave it, or can forge interrupts; a note is a weakness that one may live with, or something that
/// could not be seen. The code is a finding's stable name, for scripts.
/// Contract: findings are in the order of their weight, each code at most once; one on many devices names the first
/// max_named of them and counts the rest. A machine whose devices are all behind units, with strict invalidation and
/// remapped interrupts, has none.
/// Threads: any.
/// Known holes: what a kernel does about a device by a quirk is seen only as its groups. A hypervisor below this kernel
/// is not seen at all.

namespace guestmem::dma {

inline constexpr std::size_t max_named = 8;

enum class Weight : std::uint8_t { risk, note };
[[nodiscard]] std::string_view to_string(Weight weight);

struct Finding {
    Weight weight = Weight::risk;
    std::string_view code = {};
    std::string what = {};
    std::string_view why = {};
    std::string fix = {};
};

[[nodiscard]] std::vector<Finding> check(const Inventory& inventory);

}  // namespace guestmem::dma
