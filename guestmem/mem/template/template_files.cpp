// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/template_files.hpp"

#include <fmt/format.h>

#include <chrono>
#include <vector>

#include "guestmem/sys/random.hpp"

namespace guestmem {

Result<std::string> random_hex(std::size_t count_bytes) {
    std::vector<std::byte> bytes(count_bytes);
    GM_TRY(fill_randomly(bytes));
    std::string text;
    for (const std::byte byte : bytes) text += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
    return text;
}

std::uint64_t seconds_since_1970() {
    const auto since = std::chrono::system_clock::now().time_since_epoch();
    return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::seconds>(since).count());
}

}  // namespace guestmem
