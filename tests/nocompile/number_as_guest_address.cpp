// SPDX-License-Identifier: Apache-2.0
// A number could be an offset, a size or another space's address: a guest address is named by its type.
#include "guestmem/mem/guest_memory.hpp"

bool is_zero(guestmem::GuestMemory& memory) {
#ifdef GM_BAD_LINE
    const auto byte = memory.read<std::uint8_t>(0x1000);
#else
    const auto byte = memory.read<std::uint8_t>(guestmem::GuestAddress{0x1000});
#endif
    return byte && *byte == 0;
}
