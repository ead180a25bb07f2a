// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "guestmem/base/result.hpp"

/// Numbers and sizes as QEMU's options write them.
///
/// Contract: a size is decimal with an optional unit (B, K, M, G, T, P, E of 1024, either case) and, before a unit
/// above B, an optional fraction, of which what is below a byte is dropped; or hexadecimal (0x...) without either. A
/// number is decimal or hexadecimal. No sign, no blank. Whatever is beyond 2^64 is an error.
/// Threads: any.

namespace guestmem {

[[nodiscard]] Result<std::uint64_t> parse_qemu_size(std::string_view text);
[[nodiscard]] Result<std::uint64_t> parse_qemu_number(std::string_view text);
/// With the largest unit that divides it.
[[nodiscard]] std::string format_qemu_size(std::uint64_t size_bytes);

}  // namespace guestmem
