// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/dma/inventory.hpp"

/// A machine with one of everything that a report shows: a unit in use, a pair that is only together, a lone device, a
/// lone bridge, a device behind a unit that is not used, one behind none that is not PCI and has a hostile name.
///
/// Threads: any.

namespace guestmem::dma::testing {

inline constexpr const char* hostile_name = "/soc/\x1b[31m<b>&\"dma\"\n@1";

inline Device function_at(std::uint8_t bus, std::uint8_t device, std::uint8_t function,
                          std::size_t containment) {
    const PciAddress address = pci_address(0, bus, device, function);
    return {.name = to_string(address),
            .pci = address,
            .title = "1234:11e8 unclassified device",
            .unit = 0,
            .ids = {address.rid},
            .protection = Protection::behind_unit,
            .containment = containment,
            .kernel_group = static_cast<std::uint32_t>(containment),
            .is_interrupt_isolated = true,
            .origins = {{Source::dmar, "offset 0x40", {}}}};
}

inline Inventory small_inventory() {
    Inventory inventory;
    inventory.units = {
        {.name = "vtd@fed90000",
         .kind = UnitKind::vt_d,
         .registers = 0xfed90000,
         .kernel_name = "dmar0",
         .abilities = {.page_sizes = 4096 | 2 << 20 | 1 << 30,
                       .input_bits = 39,
                       .has_interrupt_remapping = true,
                       .can_forbid_reads = false},
         .origins = {{Source::dmar, "offset 0x30", {}}, {Source::kernel, {}, {}}}},
        {.name = "vtd@fed91000", .kind = UnitKind::vt_d, .origins = {{Source::dmar, "offset 0x60", {}}}}};
    inventory.devices = {function_at(0, 3, 0, 0), function_at(0, 4, 0, 1), function_at(0, 8, 0, 2),
                         function_at(0, 8, 1, 2), function_at(1, 0, 0, 3)};
    inventory.devices[0].driver = "vfio-pci";
    inventory.devices[0].reserved = {{.first = 0xfee00000, .last = 0xfeefffff, .kind = ReservedKind::msi}};
    inventory.devices[1].is_bridge = true;
    inventory.devices[4].unit = 1;
    inventory.devices[4].protection = Protection::unit_not_used;
    inventory.devices.push_back({.name = hostile_name, .title = hostile_name, .containment = 4});
    inventory.containments = {{.devices = {0}, .kernel_groups = {1}},
                              {.devices = {1}, .kernel_groups = {2}},
                              {.devices = {2, 3},
                               .joins = {{JoinReason::missing_acs_function, 2, 3,
                                          "00:08.0 and 00:08.1 are functions of one device without ACS"}},
                               .kernel_groups = {6}},
                              {.devices = {4}},
                              {.devices = {5}}};
    inventory.kernel_groups = {{.number = 1, .type = "DMA-FQ", .members = {"0000:00:03.0"}}};
    inventory.complaints = {{{Source::dmar, "offset 0x80", {}}, "a unit at address 0 is left out"}};
    return inventory;
}

}  // namespace guestmem::dma::testing
