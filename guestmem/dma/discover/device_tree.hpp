// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>

#include "guestmem/base/result.hpp"
#include "guestmem/dma/facts.hpp"

/// Reads a flattened device tree: /sys/firmware/fdt, or a .dtb file.
///
/// Concepts: a node with `#iommu-cells` is an IOMMU; its registers are where `reg` and the `ranges` above it put them.
/// A device's `iommus` names the IOMMU and the ids that it sends with, `iommu-map` of a PCI host bridge gives each
/// requester id its id, and a range of reserved-memory with `iommu-addresses` is one that a device needs.
/// Contract: an SMMU is named by its registers, a virtio-iommu of PCI by its function, and an IOMMU that has no
/// address for the processor by its path. A device is a NamedDevice with its path. `#iommu-cells` 0: all devices of
/// that IOMMU share the id 0. 2 cells of an SMMUv2 are an id and the bits of it that do not matter; of other IOMMUs
/// the first cell is the id. With `iommu-map-mask`, a range of covers is one of masked requester ids, which goes up to
/// the last function whose masked id is in it. As the kernel does: what is switched off is not there, the first
/// range of a map that has a requester id counts, and a range of reserved-memory is direct only where its own `reg` is
/// the same. PCI segments are `linux,pci-domain`, else counted in the order of the host bridges.
/// A blob that libfdt refuses is an error; a tree without IOMMUs (what UEFI leaves on a machine with ACPI) is no facts.
/// Limits: of device_tree_walk.hpp and of TableFacts; max_unordered_rows of maps whose ranges are in no order.
/// Threads: any.
/// Cost: linear; below 10 ns per byte and 16 bytes of memory per byte, hostile or not.
/// Known holes: `mmu-masters`, the binding of SMMUs before 2016, and `dma-ranges` are not read.

namespace guestmem::dma {

inline constexpr std::size_t max_unordered_rows = 4096;

[[nodiscard]] Result<SourceFacts> read_device_tree(std::span<const std::byte> blob);

}  // namespace guestmem::dma
