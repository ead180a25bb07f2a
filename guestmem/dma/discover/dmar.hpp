// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>

#include "guestmem/base/result.hpp"
#include "guestmem/dma/facts.hpp"

/// Reads the ACPI table DMAR: Intel VT-d's units, who is behind which, and the memory that devices have to keep.
///
/// Concepts: the layout is chapter 8 of the VT-d specification. A DRHD structure is a unit; its device scopes are its
/// covers: an endpoint, a bridge with all that is below it, an I/O APIC or HPET (who sends interrupts), a device of
/// the ACPI namespace (its name is in an ANDD structure, its requester id in the scope). INCLUDE_PCI_ALL is PciRest.
/// An RMRR structure is a reserved range of kind direct; whether a VM may have the device without it is a matter of
/// the device's class, which the table does not say. ATSR, RHSA, SATC and SIDP are checked for their form; there is
/// no fact that holds what they say.
/// Contract: an error only when nothing can be used: shorter than its fixed part, another table, more facts than
/// acpi_table.hpp or more units than max_dmar_units allow. What else is wrong is a complaint with its offset:
///   - a structure that is too short for its type, or of an unknown type, is stepped over; one of length 0 to 3, or
///     one that ends behind the table, ends the reading, since nobody knows where the next one begins;
///   - a unit at address 0 is no unit: its devices are covered as being behind none, so that no other unit's
///     INCLUDE_PCI_ALL gets them; a second structure with the same address adds to the first one's unit;
///   - a second INCLUDE_PCI_ALL in a segment is left out: the kernel takes the first;
///   - a range whose limit is below its base, or for no PCI function, is left out; one that is not whole pages, or that
///     overlaps another one, is kept as it is written;
///   - a scope that ends behind its structure ends the scopes of that structure; one without a path, with a path
///     through a device above 31 or a function above 7, of an unknown type, or of a namespace device without an ANDD
///     is left out.
/// Limits: max_dmar_units; those of acpi_table.hpp.
/// Threads: any.
/// Cost: n log n; at most 10 ns per byte and 0.02 ms (dmar_bench.cpp).
/// Known holes: an I/O APIC or HPET behind a bridge, whose bus number only the machine knows, is a complaint.

namespace guestmem::dma {

/// What the kernel's driver is built for at most (DMAR_UNITS_SUPPORTED).
inline constexpr std::size_t max_dmar_units = 1024;

[[nodiscard]] Result<SourceFacts> read_dmar(std::span<const std::byte> table);

}  // namespace guestmem::dma
