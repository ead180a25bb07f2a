// SPDX-License-Identifier: Apache-2.0
// The bytes between the members are whatever was on our stack: the guest would read them.
#include "guestmem/mem/guest_memory.hpp"

struct Padded {
    std::uint8_t kind;
    std::uint32_t value;
};
struct Packed {
    std::uint8_t kind;
    std::uint8_t zero[3];
    std::uint32_t value;
};

bool answer(guestmem::GuestMemory& memory, guestmem::GuestAddress address) {
#ifdef GM_BAD_LINE
    return memory.write(address, Padded{1, 2}).has_value();
#else
    return memory.write(address, Packed{1, {}, 2}).has_value();
#endif
}
