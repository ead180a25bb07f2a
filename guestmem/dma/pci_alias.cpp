// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/pci_alias.hpp"

namespace guestmem::dma {

std::optional<PciAddress> PciAliases::alias_of(const PciFunction& bridge) {
    if (bridge.header_type == 0) {
        return std::nullopt;
    }
    switch (bridge.port) {
        case PortType::express_to_pci_bridge:
            return pci_address(bridge.address.segment, bridge.secondary_bus.value_or(0), 0, 0);
        case PortType::conventional:
        case PortType::pci_to_express_bridge: return bridge.address;
        default: return std::nullopt;
    }
}

PciAliases::PciAliases(const PciTopology& topology)
    : bridges_(topology.functions().size(), PciTopology::none) {
    for (const std::uint32_t index : topology.preorder()) {
        const std::uint32_t above = topology.parent(index);
        if (above == PciTopology::none) {
            continue;
        }
        const PciFunction& bridge = topology.function(above);
        const bool is_believed_apart =
            is_port_unknown(bridge) && does_kernel_separate(bridge, topology.function(index));
        bridges_[index] = alias_of(bridge) && !is_believed_apart ? above : bridges_[above];
    }
}

}  // namespace guestmem::dma
