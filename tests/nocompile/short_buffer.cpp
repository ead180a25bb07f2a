// SPDX-License-Identifier: Apache-2.0
// The size of a wire field is in the type of its bytes.
#include <array>
#include <cstdint>

#include "guestmem/base/endian.hpp"

std::uint64_t read_field(const std::array<std::byte, 8>& bytes, const std::array<std::byte, 4>& too_few) {
    static_cast<void>(bytes);
    static_cast<void>(too_few);
#ifdef GM_BAD_LINE
    return guestmem::load_little<std::uint64_t>(too_few);
#else
    return guestmem::load_little<std::uint64_t>(bytes);
#endif
}
