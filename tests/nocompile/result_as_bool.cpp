// SPDX-License-Identifier: Apache-2.0
// Whether there is a value and what a Result<bool> says are two things: neither becomes a bool by itself.
#include "guestmem/base/result.hpp"

guestmem::Result<bool> is_sealed();

bool ask() {
#ifdef GM_BAD_LINE
    return is_sealed();
#else
    return is_sealed().value();
#endif
}
