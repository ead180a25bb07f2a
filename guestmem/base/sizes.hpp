// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "guestmem/base/result.hpp"

/// Sizes in bytes, as people write them and as pages and powers of two round them.
///
/// Contract: "4096", "64K", "4M", "1G", "1T"; a unit is a power of 1024 and may be followed by "iB" or "B".
/// Lower-case units mean the same. No sign, no fraction, no blank inside. Overflow is an error, not a wrap.
/// Threads: any.

namespace guestmem {

/// The page size that every size and offset of this project is a multiple of: what x86-64 and the usual
/// arm64 kernels have. A host with larger pages rounds further at the mapping.
inline constexpr std::uint64_t page_size_bytes = 4096;

/// "4M" -> 4194304.
[[nodiscard]] Result<std::uint64_t> parse_size(std::string_view text);

/// 4194304 -> "4M": the largest unit that divides it, else the plain number.
[[nodiscard]] std::string format_size(std::uint64_t size_bytes);

/// The next multiple of `granule` (a power of two), nothing when that is beyond 2^64.
[[nodiscard]] std::optional<std::uint64_t> round_up(std::uint64_t value, std::uint64_t granule);

/// The next power of two, nothing when that is beyond 2^63.
[[nodiscard]] std::optional<std::uint64_t> round_up_to_power_of_two(std::uint64_t value);

}  // namespace guestmem
