// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/dma/facts.hpp"
#include "guestmem/dma/host_view.hpp"
#include "guestmem/dma/inventory.hpp"

/// Lays what firmware and the user say onto what the kernel shows: the inventory of a machine.
///
/// Concepts: which covers hold for a device is choose_covers() of assemble.hpp; the kernel's own word (the unit that
/// it programs for the device) stands where no cover selects it, and against firmware's, which the kernel has read,
/// too; the user's word stands against the kernel's. A device is protected by its unit when the kernel uses that unit
/// for it: it is in a group and linked to that unit, or will be as soon as a driver takes it (SMMU and virtio-iommu;
/// VT-d and AMD-Vi make groups at boot). Never protected: a device that the kernel does not show, one whose identities
/// are not all known (DevicePlace::is_cut), and members of the groups that VFIO makes up where there is no unit.
/// Contract: never fails; whatever is wrong in the facts or in the view is a complaint of the inventory. Devices are
/// joined by what bridges and ports do (pci_isolation.hpp), by shared identities, and by the kernel's groups; two
/// devices of one kernel group are in one containment for any input, and each device is in exactly one. Where the
/// kernel separates devices although a port between them does not redirect, the kernel is believed and
/// Inventory::unproven_separations tells of it.
/// Limits: lists in the inventory have those of its parts: ComplaintList, device_place.hpp, device_reserved.hpp.
/// Cost: n log n in facts and devices.
/// Threads: any.
/// Known holes: a firmware name with a unique id ("AMDI0020:1") is found on the machine only when the kernel calls the
/// device so. Devices with ids that only a quirk knows are joined by the kernel's groups alone.

namespace guestmem::dma {

[[nodiscard]] Inventory resolve(const SourceFacts& facts, const HostView& view);

}  // namespace guestmem::dma
