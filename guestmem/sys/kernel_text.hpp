// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "guestmem/base/result.hpp"

/// The texts of /proc and /sys: numbers, "key value" lines, files that some kernels lack.
///
/// Contract: what is no number is no number: no sign, no fraction, no wrap beyond 2^64. A file that is not there is
/// nothing; one that cannot be read, or says something else than expected, is an error that names it.
/// Threads: any.
/// Limits: at most max_kernel_number_bytes for a file with one number. An error shows at most 40 characters of
/// what it found, those that a terminal could obey as '?'.
/// Example:
///     const std::uint64_t count = GM_TRY(read_kernel_number("/proc/sys/vm/nr_hugepages"));

namespace guestmem {

inline constexpr std::size_t max_kernel_number_bytes = 4096;

/// The whole text as one decimal number; blanks and line ends around it do not count.
[[nodiscard]] std::optional<std::uint64_t> parse_kernel_number(std::string_view text);

/// What stands behind "key" at the begin of a line, up to its end, without blanks around it; nothing when no line
/// begins so. The key is a whole word: "Mem" does not find "MemFree:".
[[nodiscard]] std::optional<std::string_view> value_of_line(std::string_view text, std::string_view key);

/// "MemFree:   12 kB" -> 12288; nothing when there is no such line, no number in it, or more than 2^64 bytes.
[[nodiscard]] std::optional<std::uint64_t> meminfo_bytes(std::string_view text, std::string_view key);

/// The text of a file; nothing when it is not there.
[[nodiscard]] Result<std::optional<std::string>> read_if_there(const std::string& path,
                                                               std::size_t limit_bytes);

/// The only number in a file.
[[nodiscard]] Result<std::uint64_t> read_kernel_number(const std::string& path);

/// An error (corrupt): "PATH: 'TEXT' is not WANTED".
[[nodiscard]] Error unexpected_text(const std::string& path, std::string_view text, std::string_view wanted);

}  // namespace guestmem
