// SPDX-License-Identifier: Apache-2.0
// A guest writes any byte, and a bool is 0 or 1.
#include "guestmem/mem/guest_memory.hpp"

bool look(guestmem::GuestMemory& memory, guestmem::GuestAddress flag) {
#ifdef GM_BAD_LINE
    return memory.read<bool>(flag).has_value();
#else
    return memory.read<unsigned char>(flag).has_value();
#endif
}
