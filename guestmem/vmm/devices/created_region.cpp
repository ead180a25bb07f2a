// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/created_region.hpp"

#include <fmt/format.h>

namespace guestmem::vmm {

bool CreatedRegion::look() {
    if (is_lost_) return false;
    const auto lost = hold_.is_lost();
    // A stream that cannot be asked holds nothing, either.
    if (lost && !*lost) return false;
    is_lost_ = true;
    warn_(fmt::format(
        "create {}: the share service has ended, or let go of this region: it is gone with its bytes; "
        "guests that ask for it make another one, if they may; start the machine again to have it made{}",
        hold_.share(), lost ? "" : " (" + lost.error().message() + ")"));
    return true;
}

}  // namespace guestmem::vmm
