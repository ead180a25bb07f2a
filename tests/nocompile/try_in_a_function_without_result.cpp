// SPDX-License-Identifier: Apache-2.0
// GM_TRY returns the error from the function around it, which must have a place for it.
#include "guestmem/base/result.hpp"

guestmem::Result<int> number();

guestmem::Result<void> good() {
    static_cast<void>(GM_TRY(number()));
    return {};
}

#ifdef GM_BAD_LINE
void bad() { static_cast<void>(GM_TRY(number())); }
#endif
