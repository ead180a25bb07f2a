// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>

#include "guestmem/dma/pci_topology.hpp"

/// Under which other requester ids the requests of a PCI function can arrive because of bridges above it.
///
/// Concepts: a PCI bus has no requester ids, so that a bridge from PCI Express to PCI gives requests from below the
/// number of its secondary bus with device 0 and function 0 (PCI Express to PCI/PCI-X Bridge Specification, 2.3);
/// bridges above which there is a conventional bus take requests over with their own id. Ports of PCI Express leave
/// ids alone. Linux has the same rule in pci_for_each_dma_alias().
/// Contract: a function's ids are its own, that of the nearest bridge above it that aliases, and that bridge's in
/// turn. A bridge whose port type could not be read (conventional, and no word of ACS) aliases, unless the kernel has
/// it in another group than the function below it.
/// Known holes: devices with wrong ids (phantom functions, quirks) are known from the kernel's groups only.
/// Threads: any, once made.

namespace guestmem::dma {

class PciAliases {
public:
    explicit PciAliases(const PciTopology& topology);

    /// The nearest bridge above that aliases; PciTopology::none when there is none.
    [[nodiscard]] std::uint32_t bridge_above(std::size_t index) const { return bridges_[index]; }
    /// What requests from below arrive with after they went through this bridge; nothing when it leaves them alone.
    [[nodiscard]] static std::optional<PciAddress> alias_of(const PciFunction& bridge);

private:
    std::vector<std::uint32_t> bridges_;
};

/// The configuration space of the function could be read only in part, so that it is not known to be PCI Express.
[[nodiscard]] inline bool is_port_unknown(const PciFunction& function) {
    return function.port == PortType::conventional && !function.access_control;
}

/// Both have a group, and not the same.
[[nodiscard]] inline bool does_kernel_separate(const PciFunction& one, const PciFunction& other) {
    return one.group && other.group && *one.group != *other.group;
}

}  // namespace guestmem::dma
