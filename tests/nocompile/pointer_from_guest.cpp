// SPDX-License-Identifier: Apache-2.0
// A pointer of the guest is a number here.
#include "guestmem/mem/guest_memory.hpp"

bool look(guestmem::GuestMemory& memory, guestmem::GuestAddress place) {
#ifdef GM_BAD_LINE
    return memory.read<const char*>(place).has_value();
#else
    return memory.read_le<unsigned long>(place).has_value();
#endif
}
