// SPDX-License-Identifier: Apache-2.0
// Any number could be meant; a descriptor is named by its type.
#include "guestmem/sys/fd.hpp"

guestmem::Result<guestmem::FileFacts> facts_of_stdin() {
#ifdef GM_BAD_LINE
    return guestmem::file_facts(0);
#else
    return guestmem::file_facts(guestmem::FdView{0});
#endif
}
