// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/dma/containment.hpp"
#include "guestmem/dma/pci_alias.hpp"

/// Which PCI functions can reach each other without passing the IOMMU.
///
/// Concepts: requests of one function reach another when a port above them sends them down again instead of up, when
/// functions of one device talk inside of it, or when a conventional bus is between them. Access Control Services
/// forbid it where source validation, request and completion redirect and upstream forwarding are on (a bit that the
/// port does not have is wired on). The rules are those of Linux' pci_device_group(), so that what they say equals
/// the kernel's groups.
/// Contract: joins functions by index; all ports on the way to the root must redirect. What could not be read counts
/// as missing, unless the kernel has both functions in different groups. Where ACS is known to be missing and the
/// kernel separates all the same, the kernel is believed, and the port is reported. A conventional bridge joins in
/// any case: below it nobody can tell requests apart. Functions with `is_apart` set (IOMMUs) are left alone.
/// Cost: linear, plus 28 pairs for each device with eight functions.
/// Threads: one at a time.

namespace guestmem::dma {

enum class Acs : std::uint8_t { on, missing, unknown };

/// Whether this function keeps requests of its sides, or of its siblings, apart.
[[nodiscard]] Acs acs_of(const PciFunction& function);

/// Ports that do not redirect, and whose sides the kernel keeps apart: ascending, each once.
[[nodiscard]] std::vector<PciAddress> join_functions(const PciTopology& topology, const PciAliases& aliases,
                                                     const std::vector<bool>& is_apart, ContainmentSet& set);

}  // namespace guestmem::dma
