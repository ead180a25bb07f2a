// SPDX-License-Identifier: Apache-2.0
// Taking ownership of a descriptor is written down.
#include "guestmem/sys/fd.hpp"

int open_something();

void own() {
#ifdef GM_BAD_LINE
    const guestmem::Fd fd = open_something();
#else
    const guestmem::Fd fd{open_something()};
#endif
}
