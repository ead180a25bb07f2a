// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>

#include "guestmem/base/result.hpp"
#include "guestmem/dma/facts.hpp"

/// Reads the ACPI table IVRS: AMD-Vi's units, who is behind which, and the memory that devices have to keep.
///
/// Concepts: the layout is chapter 5 of the AMD I/O virtualization specification. An IVHD block is a unit with entries
/// for device ids (requester ids of its segment): all, one, a range. The same unit stands in the table as type 0x10,
/// 0x11 and 0x40, for kernels that know no more; one of these flavors is read. An alias entry says that requests of
/// its devices arrive with another id, the source id: its cover has that as its shared identity, and the source id
/// itself is covered, too. A special entry is an I/O APIC or HPET with the id that it sends with; entry 0xF0 is a
/// device without PCI, by HID and UID. An IVMD block is a reserved range of kind direct.
/// Contract: as the kernel does it: the flavor is the last type up to 0x40 that has the first block's device id; later
/// entries add to earlier ones, and an alias stays whatever a plain entry says of the same id. An exclusion range is
/// a one to one range to read and write, since firmware means that by it. An IVMD for all devices is a ReservedFact
/// for all. An error only when nothing can be used: shorter than its fixed part, another table, more facts than
/// acpi_table.hpp or more units than max_ivrs_units allow. What else is wrong is a complaint with its offset:
///   - a block that is too short for its type, or of an unknown type, is stepped over; one of length 0 to 3, or one
///     that ends behind the table, ends the reading; an entry of unknown length, or one that ends behind its block,
///     ends the reading of that block;
///   - a second block of the flavor for the same function adds to the first one's unit; a unit that has no block of
///     the flavor is left out, as the kernel does;
///   - a range that is not closed, is reversed, or is closed without having been opened is left out;
///   - an IVMD of no bytes, past the end of memory, with reversed ids or without unity and exclusion is left out.
/// PlatformFacts::is_protected_from_start is IVinfo's bit 1, "DMA remapping before the kernel".
/// Limits: max_ivrs_units; those of acpi_table.hpp.
/// Threads: any.
/// Cost: linear, in two passes; at most 10 ns per byte and 0.1 ms (ivrs_bench.cpp): a fact takes about 50 ns, and
/// where one is every 4 bytes there can be no more than 5,000 of them.
/// Known holes: the feature words are not read: the kernel reports them, corrected, in sysfs. Ids of an IVMD for one or
/// some devices are PCI functions: a named device (0xF0) whose id is among them has to be found by that.

namespace guestmem::dma {

/// IVHD blocks, of all flavors together.
inline constexpr std::size_t max_ivrs_units = 256;

[[nodiscard]] Result<SourceFacts> read_ivrs(std::span<const std::byte> table);

}  // namespace guestmem::dma
