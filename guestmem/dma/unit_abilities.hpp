// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/dma/inventory.hpp"

/// What an IOMMU can enforce, from its own registers as the kernel shows them and from the rules of its kind.
///
/// Concepts: VT-d's cap and ecap, AMD-Vi's PCI capability and extended features are bits of the hardware manuals; of
/// SMMUs and virtio-iommu the kernel shows no registers, so that only what holds for each of the kind is said.
/// Contract: what neither a register nor a rule says stays empty. Abilities are those of the page tables that Linux
/// makes: the second level on VT-d, stage 1 on SMMUs; neither of them can forbid reads to who may write.
/// Known holes: a kernel that was told to leave interrupt remapping off is known by its command line only.
/// Threads: any.

namespace guestmem::dma {

/// `kernel` may be null: the kernel does not use the unit, or there is only a table.
[[nodiscard]] UnitAbilities abilities_of(UnitKind kind, const KernelUnit* kernel,
                                         const PlatformFacts& platform, const KernelSettings& settings);

/// Whether the command line has this word: "intremap=off" among words that blanks separate.
[[nodiscard]] bool has_kernel_parameter(std::string_view command_line, std::string_view word);

}  // namespace guestmem::dma
