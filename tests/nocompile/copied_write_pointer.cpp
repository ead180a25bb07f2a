// SPDX-License-Identifier: Apache-2.0
// One permission, one owner: a copy would hold the region under the same name and mark it a second time.
#include <utility>

#include "guestmem/mem/pointer_guard.hpp"

guestmem::WritePointer take(guestmem::WritePointer& pointer) {
#ifdef GM_BAD_LINE
    return pointer;
#else
    return std::move(pointer);
#endif
}
