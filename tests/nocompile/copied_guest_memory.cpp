// SPDX-License-Identifier: Apache-2.0
// A GuestMemory is one reader's: each makes its own of the map.
#include "guestmem/mem/guest_memory.hpp"

void serve(guestmem::GuestMemory& memory, const std::shared_ptr<const guestmem::MemoryMap>& map) {
#ifdef GM_BAD_LINE
    guestmem::GuestMemory own = memory;
#else
    guestmem::GuestMemory own{map};
#endif
    static_cast<void>(&own.map() == &memory.map());
}
