// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>

#include "guestmem/base/result.hpp"
#include "guestmem/vmm/boot/boot_file.hpp"
#include "guestmem/vmm/boot/low_memory.hpp"

/// The command line of a guest: a text with a NUL behind it at low_memory::command_line.
///
/// Contract: a text with a NUL inside, or longer than the spot or the kernel takes, is refused with both numbers; it is
/// never cut. An empty one is written, too.
/// Limits: max_command_line_bytes without the NUL; Linux for x86 takes 2047.
/// Threads: one at a time for each guest memory.

namespace guestmem::vmm {

inline constexpr std::uint64_t max_command_line_bytes = low_memory::command_line.size_bytes - 1;

/// `limit_bytes`: what the kernel says it takes, without the NUL.
[[nodiscard]] Result<void> write_command_line(std::string_view text, std::uint64_t limit_bytes,
                                              BootMemory& memory);

}  // namespace guestmem::vmm
