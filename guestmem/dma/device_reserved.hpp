// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/dma/device_list.hpp"
#include "guestmem/dma/pci_topology.hpp"

/// Which ranges of addresses are reserved for or from each device.
///
/// Concepts: firmware's and the user's ranges are laid onto devices by their selectors, and choose_reserved() of
/// assemble.hpp says which hold; the kernel's ranges are those of the device's group. Ranges that DMAR wants kept for
/// USB and graphics are relaxable, as Linux has it: firmware uses them until a driver takes the device.
/// Contract: sets Device::reserved, ascending. A range that both say is there once, with the origin of the table and
/// the kind that the kernel gives it. Where the kernel shows no ranges, those of the kind of unit are added: the MSI
/// window of x86, AMD-Vi's HyperTransport range, the MSI window that Linux makes up on SMMUs.
/// Limits: most_reserved_of_device ranges per device and most_reserved altogether; what comes after is a complaint.
/// Cost: n log n in ranges and devices.
/// Threads: any.

namespace guestmem::dma {

inline constexpr std::size_t most_reserved_of_device = 64;
inline constexpr std::size_t most_reserved = 262144;

/// Devices have their units and groups.
void lay_reserved(const SourceFacts& facts, const HostView& view, const PciTopology& topology,
                  const std::vector<Unit>& units, DeviceList& list, ComplaintList& complaints);

}  // namespace guestmem::dma
