// SPDX-License-Identifier: Apache-2.0
// A failure that nobody looks at is a warning, and warnings are errors.
#include "guestmem/base/result.hpp"

guestmem::Result<void> save();

// What may fail may be asked for its value unseen: GM_CHECK answers at run time.
int read_unseen(const guestmem::Result<int>& number) { return *number; }

void finish() {
    if (!save()) return;
#ifdef GM_BAD_LINE
    save();
#endif
}
