// SPDX-License-Identifier: Apache-2.0
// What a ReadPointer points to may be ROM, and nobody would mark it dirty.
#include "guestmem/mem/pointer_guard.hpp"

void patch(const guestmem::ReadPointer& read, const guestmem::WritePointer& write) {
#ifdef GM_BAD_LINE
    read.bytes()[0] = std::byte{1};
#else
    write.bytes()[0] = read.bytes()[0];
#endif
}
