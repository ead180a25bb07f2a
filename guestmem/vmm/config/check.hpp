// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/vmm/config/parser.hpp"

/// Looks at a configuration as a whole, and fills in what follows from the rest.
///
/// Contract: what is filled in is said at VmConfig: where RAM lies, the one CPU of a configuration without any, the
/// places of an ioapic and of serial ports that have none. Each finding about two lines names both. What depends on a
/// line that the parser dropped is not looked at: a mistake is reported once.
/// Checked: a name, RAM and a kernel are there; RAM stands before what is loaded into it; ram, rom, reserve, the
/// registers of devices and the local APICs are apart, and RAM begins outside of the device hole; names are given
/// once; an interrupt leads to an ioapic that stands before it; an edge-triggered pin has one device, level-triggered
/// devices may share one; serial ports are apart; a region is created once, with one size; a share has one size; a
/// `vdev shmem` has both loc and intr, or neither; counts are within the limits of vm_config.hpp.
/// Threads: any.

namespace guestmem::vmm {

void check_configuration(Parsed& parsed, Findings& findings);

}  // namespace guestmem::vmm
