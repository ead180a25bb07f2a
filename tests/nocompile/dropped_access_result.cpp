// SPDX-License-Identifier: Apache-2.0
// A write that a guest's address made fail, and nobody noticed.
#include "guestmem/mem/guest_memory.hpp"

guestmem::AccessResult<void> touch(guestmem::GuestMemory& memory);

bool write(guestmem::GuestMemory& memory) {
    const bool is_good = touch(memory).has_value();
#ifdef GM_BAD_LINE
    touch(memory);
    memory.write<std::uint32_t>(guestmem::GuestAddress{0x1000}, 1);
#endif
    return is_good;
}
