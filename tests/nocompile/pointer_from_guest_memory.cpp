// SPDX-License-Identifier: Apache-2.0
// A pointer that a guest wrote points wherever the guest likes.
#include "guestmem/mem/guest_memory.hpp"

bool is_null(guestmem::GuestMemory& memory, guestmem::GuestAddress address) {
#ifdef GM_BAD_LINE
    return memory.read<const char*>(address).value_or(nullptr) == nullptr;
#else
    return memory.read<std::uint64_t>(address).value_or(0) == 0;
#endif
}
