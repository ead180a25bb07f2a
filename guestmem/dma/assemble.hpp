// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/dma/discover/smmu_words.hpp"
#include "guestmem/dma/facts.hpp"

/// Lays the user's words over what firmware says: all sources become one SourceFacts.
///
/// Concepts: *override* (what holds without a word about it) puts the user's word in place of the firmware's, for the
/// unit or the device that it is about and for no other; *merge* keeps both. The narrowest scope decides: that of the
/// device, then of the unit, then the global one. No device is looked up here, since whether a bridge path or a rest
/// selects a device is seen on the machine alone: precedence is written into the facts, and choose_covers() reads it
/// for a device.
/// Contract, units: a firmware unit is the user's when names, registers or PCI functions are equal. It gets the
/// user's name, in covers too. Override: one UnitFact is left, the user's; what words cannot say (size of registers,
/// segment) stays the firmware's; its origin says `overrides DMAR`. Merge, and several firmware sources: UnitFacts of
/// one name stand side by side, firmware first, and are one unit; the first that says a thing decides; what
/// contradicts is a complaint.
/// Contract, covers, in this order:
///   1. the user's that override (is_override), in the order of the words
///   2. firmware's that are no PciRest, source by source, in the order of each
///   3. the user's that merge
///   4. firmware's PciRest
/// For one device take, in order, the covers that select it. When any is_override, the others do not count. When any
/// that is left is no PciRest, those that are do not count. The first that counts decides the unit; others of the same
/// unit add identities; others of another unit contradict and do not count.
/// Contract, reserved ranges: the user's that override, then firmware's, then the user's that merge. When any that
/// selects a device is_override, the others do not hold for it.
/// Contract, tables: `smmu TYPE ignore` leaves out the sources of that type (VT-d: DMAR; AMD-Vi: IVRS; SMMU: IORT and
/// device tree; virtio-iommu: VIOT and device tree) with all that they say; `require` without any of them is an error
/// (not_found). A device tree beside ACPI tables that have units is left out and complained of. A `use` of a unit that
/// nobody declares is an error (invalid_argument) that names all of them.
/// Limits: as many facts as all sources have together.
/// Cost: n log n in all facts.
/// Threads: any.
/// Known holes: `overrides` of a cover's origin is written here only where the machine is not needed to see it: ranges,
/// registers, paths of one hop, the rest; choose_covers() knows it for each device.

namespace guestmem::dma {

/// What one table or tree says. One without units is there all the same.
struct FirmwareFacts {
    Source source = Source::dmar;
    SourceFacts facts = {};
};

[[nodiscard]] Result<SourceFacts> assemble(std::span<const FirmwareFacts> firmware, const UserWords& words);

/// What holds for one device; pointers are those that were given.
struct CoverChoice {
    std::vector<const CoverFact*> taken = {};  ///< the first decides the unit; empty: no cover selects it
    std::vector<const CoverFact*> overridden = {};     ///< the user's word stands in their place
    std::vector<const CoverFact*> contradicting = {};  ///< of another unit, and not overridden
    std::vector<Origin> origins = {};                  ///< of `taken`, with what each overrides
};
/// From the covers that select a device, in the order of the facts.
[[nodiscard]] CoverChoice choose_covers(std::span<const CoverFact* const> selecting);

struct ReservedChoice {
    std::vector<const ReservedFact*> taken = {};
    std::vector<const ReservedFact*> overridden = {};
    std::vector<Origin> origins = {};  ///< of `taken`, with what each overrides
};
/// From the reserved ranges that are the device's, in the order of the facts.
[[nodiscard]] ReservedChoice choose_reserved(std::span<const ReservedFact* const> selecting);

}  // namespace guestmem::dma
