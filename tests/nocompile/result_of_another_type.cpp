// SPDX-License-Identifier: Apache-2.0
// A Result is not the value of another Result: GM_TRY stands between them.
#include <string>

#include "guestmem/base/result.hpp"

guestmem::Result<std::string> name();

guestmem::Result<int> number() {
#ifdef GM_BAD_LINE
    return name();
#else
    return static_cast<int>(GM_TRY(name()).size());
#endif
}
