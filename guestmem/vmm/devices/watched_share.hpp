// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/sys/fd.hpp"

/// What a device has in a share, as the thread sees it that waits for shares (share_watch.hpp).
///
/// Contract: view() is readable while look() has something to find, and stays the same or is not open any more. What
/// has no view is looked at now and then. look() takes what there is, without waiting for anybody, and says whether
/// that was anything.
/// Threads: any.

namespace guestmem::vmm {

class WatchedShare {
public:
    WatchedShare() = default;
    WatchedShare(const WatchedShare&) = delete;
    WatchedShare& operator=(const WatchedShare&) = delete;
    virtual ~WatchedShare() = default;

    [[nodiscard]] virtual FdView view() const = 0;
    virtual bool look() = 0;
};

}  // namespace guestmem::vmm
