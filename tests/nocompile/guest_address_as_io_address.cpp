// SPDX-License-Identifier: Apache-2.0
// What a device says is not what the guest's memory says: only a translator turns one into the other.
#include "guestmem/mem/address.hpp"

bool is_mapped(guestmem::IoAddress address);

bool ask(guestmem::GuestAddress address) {
#ifdef GM_BAD_LINE
    return is_mapped(address);
#else
    return is_mapped(guestmem::IoAddress{address.value()});
#endif
}
