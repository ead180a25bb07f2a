// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>

#include "guestmem/base/result.hpp"
#include "guestmem/dma/facts.hpp"

/// Reads Arm's IO Remapping Table (IORT): SMMUs, and with which stream ids devices arrive at them.
///
/// Concepts: the table is a graph. PCI root complexes and named components have ID mappings, which lead to an SMMU,
/// perhaps through other nodes, or to an ITS, which is where interrupts go: a device whose mapping leads straight
/// there is behind no SMMU. An RMR node is memory that the devices of some stream ids reach one to one.
/// Contract: node types 0 to 6 (revision E.b). SMMUv1, SMMUv2 and MMU-400, -401, -500 are smmu_v2. Covers are in the
/// order of the nodes, those of one root complex by requester id; none overlaps another. iort_map.hpp says what
/// becomes of mappings that overlap. Of two root complexes of one segment the first counts, as in the kernel. A range
/// of stream ids of a named component is a cover for each block of ids (ignored_bits). A root complex or component
/// whose ids lead to an ITS alone has a cover without a unit; ids that no mapping has are in no cover. The mappings
/// of SMMUs and performance counters are for their own interrupts: they are not followed. The devices of an RMR are
/// those whose covers have its stream ids; when there are none, the stream ids stand for them by name
/// ("stream ids 0x10-0x1f of smmuv3@9050000"), and when there are too many, all are meant.
/// Limits: of TableFacts; paths of max_iort_depth nodes; max_rmr_devices; a number of steps that grows with the
/// table.
/// Threads: any.
/// Cost: n log n, below 10 ns per byte; memory below 16 bytes per byte and 1 MiB. ID mappings of root complexes that
/// are more than there is room for are counted first, and refused before the first is read.

namespace guestmem::dma {

/// Root complex, SMMU and ITS are three; more than a few more is a loop.
inline constexpr std::size_t max_iort_depth = 8;
inline constexpr std::size_t max_rmr_devices = 1024;

[[nodiscard]] Result<SourceFacts> read_iort(std::span<const std::byte> table);

}  // namespace guestmem::dma
