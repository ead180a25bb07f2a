// SPDX-License-Identifier: Apache-2.0
// An error that is made and not returned is a forgotten `return`.
#include "guestmem/base/result.hpp"

guestmem::Error refusal();

guestmem::Result<int> half_of(int number) {
#ifdef GM_BAD_LINE
    if (number % 2 != 0) refusal();
#else
    if (number % 2 != 0) return refusal();
#endif
    return number / 2;
}
