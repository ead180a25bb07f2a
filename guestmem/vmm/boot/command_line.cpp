// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/command_line.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <string>

namespace guestmem::vmm {

Result<void> write_command_line(std::string_view text, std::uint64_t limit_bytes, BootMemory& memory) {
    const std::uint64_t limit = std::min(limit_bytes, max_command_line_bytes);
    if (text.size() > limit)
        return Error{Errc::out_of_range,
                     fmt::format("command line: {} bytes; this guest takes {}", text.size(), limit)};
    if (const std::size_t at = text.find('\0'); at != std::string_view::npos)
        return Error{Errc::invalid_argument, fmt::format("command line: a NUL byte at offset {}", at)};
    const std::string with_nul{text};
    const std::span bytes{with_nul.c_str(), with_nul.size() + 1};
    const auto done = memory.write_bytes(GuestAddress{low_memory::command_line.base}, std::as_bytes(bytes));
    if (!done) return done.error().to_error("command line");
    return {};
}

}  // namespace guestmem::vmm
