// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <set>

#include "guestmem/vmm/config/schema.hpp"
#include "guestmem/vmm/config/vm_config.hpp"

/// Where everything lies in the guest's address space, and whether it is apart.
///
/// Contract: gives each line of memory its ranges: RAM without a start goes directly after the highest RAM or ROM of
/// the lines before it, and what would reach into the device hole goes on at 4 GiB. An ioapic without loc gets
/// default_ioapic_base. Then every two things that overlap are a finding that names both; a load with an address has
/// to begin in RAM or ROM that stands before it. With a dropped ram or rom line nothing of that can be known.
/// Threads: any.

namespace guestmem::vmm {

void check_placement(VmConfig& config, const std::set<Word>& broken, Findings& findings);

}  // namespace guestmem::vmm
