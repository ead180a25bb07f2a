// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/base/table_reader.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/share/config_places.hpp"

/// Reads one [[vm]]: who it is, its rules, its limits, its doors. A part of config_file.hpp.
///
/// Contract: adds a VmConfig and its DoorConfigs to the configuration, which has all shares already. Mistakes go into
/// the diagnostics; what is added then is not to be used.
/// Limits: max_rules, max_shares doors.
/// Threads: one at a time.

namespace guestmem::share {

void read_vm(const TomlNode& node, ServiceConfig& config, ConfigPlaces& places, Diagnostics& diagnostics);

/// The keys of UsageLimits, over what `limits` has; for a VM and for all together.
void read_usage_limits(TableReader& table, UsageLimits& limits);

}  // namespace guestmem::share
