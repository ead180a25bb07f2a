// SPDX-License-Identifier: Apache-2.0
// Padding would show the guest bytes of our stack.
#include "guestmem/mem/guest_memory.hpp"

struct Padded {
    char kind;
    int value;
};
struct Packed {
    int kind;
    int value;
};

bool tell(guestmem::GuestMemory& memory, guestmem::GuestAddress place) {
#ifdef GM_BAD_LINE
    return memory.write(place, Padded{'a', 1}).has_value();
#else
    return memory.write(place, Packed{'a', 1}).has_value();
#endif
}
