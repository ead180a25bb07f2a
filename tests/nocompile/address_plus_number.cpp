// SPDX-License-Identifier: Apache-2.0
// A sum of addresses may wrap: whoever adds says what happens then.
#include "guestmem/mem/address.hpp"

guestmem::GuestAddress next(guestmem::GuestAddress address) {
#ifdef GM_BAD_LINE
    return address + 8;
#else
    return address.saturating_add(8);
#endif
}
