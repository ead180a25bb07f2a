// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <utility>

#include "guestmem/share/hold.hpp"
#include "guestmem/vmm/devices/watched_share.hpp"

/// A region of a `create` line: held for as long as the machine lives, and said when it is lost all the same.
///
/// Contract: a service that ended without handing its memory on, or let go of this hold, has taken the region along:
/// that is one warning. Connections that were made before end by themselves (shmem_client.hpp); a guest that asks for
/// the name afterwards makes a region of its own, of its own size, if it may.
/// Threads: any for view(), hold()'s facts; look() one at a time.
/// Cost: a look is one system call, now and then (share_watch.hpp): there is nothing to wait for.

namespace guestmem::vmm {

class CreatedRegion final : public WatchedShare {
public:
    using Warn = std::function<void(const std::string&)>;
    CreatedRegion(share::Hold hold, Warn warn) : hold_(std::move(hold)), warn_(std::move(warn)) {}

    [[nodiscard]] const share::Hold& hold() const { return hold_; }
    /// None.
    [[nodiscard]] FdView view() const override { return {}; }
    bool look() override;

private:
    share::Hold hold_;
    Warn warn_;
    bool is_lost_ = false;
};

}  // namespace guestmem::vmm
