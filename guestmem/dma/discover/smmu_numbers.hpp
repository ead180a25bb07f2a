// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>

#include "guestmem/base/result.hpp"

/// Numbers as smmuman's options write them.
///
/// Contract: an address is hexadecimal, a size and every other number decimal. `0x` before it makes any of them
/// hexadecimal, `0d` decimal. `K`, `M` or `G` behind an address or a size, in either case, multiplies by 1024 once,
/// twice, three times. No sign, no fraction. What does not fit into 64 bits is an error, not a wrap. An error is
/// invalid_argument or out_of_range, and its sentence says what is wrong with the number.
/// Threads: any.

namespace guestmem::dma {

enum class NumberStyle : std::uint8_t { address, size, plain };

[[nodiscard]] Result<std::uint64_t> parse_smmu_number(std::string_view text, NumberStyle style);

}  // namespace guestmem::dma
