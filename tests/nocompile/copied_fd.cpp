// SPDX-License-Identifier: Apache-2.0
// A descriptor has one owner: a copy would close it twice.
#include "guestmem/sys/fd.hpp"

guestmem::Fd pass_on(guestmem::Fd& fd) {
#ifdef GM_BAD_LINE
    return guestmem::Fd{fd};
#else
    return guestmem::Fd{std::move(fd)};
#endif
}
