// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/dma/inventory.hpp"

/// What an IOMMU can enforce, from its own registers as the kernel shows them and from the rules of its kind.
///
/// Concepts: VT-d's cap and ecap, AMD-Vi's PCI capability and extended features are bits of the hardware manuals; of
/// SMMUs and virtio-iommu the kernel shows no registers, so that only what holds for each of the kind is said.
/// Contract: what neither a register nor a rule says stays empty. Abilities are those of the page tables that Linux
/// makes: the second level on VT-d, stage 1 on SMMUs; neither of them can forbid reads to who may write.
/// Interrupts are remapped when the unit can, its table says so and the command line does not forbid it; while the
/// table was not read, nothing is said. The table of AMD-Vi says so by naming an I/O APIC: without one Linux leaves
/// remapping off.
/// Known holes: a kernel that was told to leave interrupt remapping off is known by its command line only.
/// Threads: any.

namespace guestmem::dma {

/// What the tables say of remapping by this kind of unit. For AMD-Vi: whether IVRS names an I/O APIC; nothing when no
/// IVRS was read.
[[nodiscard]] std::optional<bool> remaps_interrupts(UnitKind kind, const SourceFacts& facts);

/// `kernel` may be null: the kernel does not use the unit, or there is only a table. In `platform` is what
/// remaps_interrupts() says of this kind.
[[nodiscard]] UnitAbilities abilities_of(UnitKind kind, const KernelUnit* kernel,
                                         const PlatformFacts& platform, const KernelSettings& settings);

/// Whether the command line leaves interrupts that devices send unchecked: remapping is off, or the sender is not
/// compared ("intremap=nosid"). As the kernel reads it: words in quotation marks count, values are parted by commas,
/// of "on" and "off" the last counts.
[[nodiscard]] bool is_remapping_off(std::string_view command_line);

}  // namespace guestmem::dma
