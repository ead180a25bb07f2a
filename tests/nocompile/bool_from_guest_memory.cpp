// SPDX-License-Identifier: Apache-2.0
// A guest writes a 2 where a bool is expected: that is no bool. A number is read and compared.
#include "guestmem/mem/guest_memory.hpp"

bool is_enabled(guestmem::GuestMemory& memory, guestmem::GuestAddress address) {
#ifdef GM_BAD_LINE
    return memory.read<bool>(address).value_or(false);
#else
    return memory.read<std::uint8_t>(address).value_or(0) != 0;
#endif
}
