// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "guestmem/base/result.hpp"
#include "guestmem/dma/facts.hpp"

/// Reads the Virtual I/O Translation table (VIOT): which devices are behind a virtio-iommu, and as which endpoint.
///
/// Concepts: ranges of PCI functions and single MMIO devices name the virtio-iommu, itself a PCI function or an MMIO
/// device, that translates for them. The endpoint of a function grows with its segment and requester id.
/// Contract: a range of several segments is a cover for each. A virtio-iommu that is in its own range is not behind
/// itself. Where ranges overlap the first one counts, as in the kernel; covers do not overlap.
/// Limits: of TableFacts; max_viot_units, a table with more is refused; max_viot_segments for one range and
/// max_viot_more_segments for all, beside the first one of each, and max_viot_contested ranges that overlap others;
/// what is behind them is not read.
/// Threads: any.
/// Cost: n log n, below 10 ns per byte; memory below 16 bytes per byte and 1 MiB.

namespace guestmem::dma {

inline constexpr std::size_t max_viot_units = 1024;
inline constexpr std::size_t max_viot_contested = 4096;
/// More than any machine has; a range of "all segments" would be 65,536 facts.
inline constexpr std::size_t max_viot_segments = 256;
inline constexpr std::uint32_t max_viot_more_segments = 1024;

[[nodiscard]] Result<SourceFacts> read_viot(std::span<const std::byte> table);

}  // namespace guestmem::dma
