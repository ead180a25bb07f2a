// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <expected>
#include <string>
#include <string_view>

/// Numbers, addresses and lengths as `.qvmconf` writes them.
///
/// Contract: hexadecimal with `0x`, or decimal with an optional K, M, G or T (of 1024, either case). No sign, blank or
/// fraction, no unit behind a hexadecimal number. A decimal number of several digits does not begin with 0: some
/// readers take that for octal. Whatever is beyond 2^64 - 1 is a mistake, not a wrap.
/// Threads: any.

namespace guestmem::vmm {

/// What is wrong with a piece of text, and what to write instead.
struct TextProblem {
    std::string what;
    std::string advice;
};

[[nodiscard]] std::expected<std::uint64_t, TextProblem> read_number(std::string_view text);

/// "0x10000000".
[[nodiscard]] std::string write_address(std::uint64_t address);
/// "192M": the largest unit that divides it.
[[nodiscard]] std::string write_length(std::uint64_t length_bytes);

}  // namespace guestmem::vmm
