// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "guestmem/cli/exit_codes.hpp"

/// What the words of `guestmem vm ...` say, as plain values: vm_commands.cpp fills them in, the other vm_*.cpp act on
/// them.
///
/// Threads: any; plain values.

namespace guestmem::cli {

struct VmListOptions {
    bool json = false;
};

/// Common to all that speak to one machine.
struct VmOptions {
    std::string name;
    std::string control;  ///< its socket, instead of the name
    bool json = false;
};

struct VmStopOptions : VmOptions {
    double timeout_seconds = 10;
};

struct VmAttachOptions : VmOptions {
    std::string share;
    std::optional<std::uint64_t> address;  ///< nothing: the machine chooses
};

struct VmDetachOptions : VmOptions {
    std::string share;
};

struct VmDirtyOptions : VmOptions {
    std::string verb;  ///< "on", "off", "harvest"
};

int vm_list(const VmListOptions& options);
int vm_stat(const VmOptions& options);
int vm_map(const VmOptions& options);
int vm_pause(const VmOptions& options);
int vm_resume(const VmOptions& options);
int vm_stop(const VmStopOptions& options);
int vm_power_button(const VmOptions& options);
int vm_attach(const VmAttachOptions& options);
int vm_detach(const VmDetachOptions& options);
int vm_dirty(const VmDirtyOptions& options);

}  // namespace guestmem::cli
