// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "guestmem/base/result.hpp"
#include "guestmem/dma/discover/host_tree.hpp"
#include "guestmem/dma/host_view.hpp"

/// sysfs and /proc become a HostView.
///
/// Concepts: sysfs has a folder for each PCI function, platform device, unit and group; links say what belongs to what.
/// A function's place among the bridges is in the bus numbers of configuration space.
/// Contract: what is not there or not readable is an empty field; each kind of it that a reader should know of is one
/// complaint with the number of cases and the first one. Files that users without privileges cannot read whole
/// (configuration space beyond 64 bytes) are such a complaint, which says to run as root. Names that the kernel shows
/// come without control characters. Platform and AMBA devices are those with a group, a unit or a firmware name.
/// The command line has its words about IOMMU, PCI and VFIO only, as a capture has. A tree without any of it is a
/// HostView without devices.
/// A port is external-facing when the device tree says so, or when devices behind it are removable and it is not:
/// the kernel shows ACPI's ExternalFacingPort by this alone (`removable`, kernel 5.14).
/// Threads: any.
/// Limits: max_host_names names in a folder; more are an error.
/// Cost: in a folder about 12 system calls for each PCI function and 14 for its group; 4,096 functions and their
/// groups take less than 200 ms (sysfs_bench.cpp, discover_bench.cpp).
/// Known holes: an external-facing port of ACPI with nothing plugged in is not told. Segments above ffff (VMD) have no
/// PciAddress: their functions are platform devices with their names, and a complaint; that they share VMD's identity
/// is not seen but for the kernel's group. has_vfio and has_iommufd say what is loaded, not what could be.

namespace guestmem::dma {

inline constexpr std::size_t max_host_names = 65536;

[[nodiscard]] Result<HostView> read_host_view(HostTree& tree);

}  // namespace guestmem::dma
