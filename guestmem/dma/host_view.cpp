// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/host_view.hpp"

#include <algorithm>

namespace guestmem::dma {

const PciFunction* HostView::find(PciAddress address) const {
    const auto at = std::ranges::lower_bound(functions, address, {}, &PciFunction::address);
    return at != functions.end() && at->address == address ? &*at : nullptr;
}

}  // namespace guestmem::dma
