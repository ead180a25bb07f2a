// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <initializer_list>
#include <set>
#include <string>
#include <vector>

#include "guestmem/dma/facts.hpp"
#include "guestmem/dma/host_view.hpp"
#include "guestmem/dma/inventory.hpp"

/// Machines made by hand, for tests of the inventory.
///
/// Contract: functions are those that a kernel would show; a machine's list is sorted by the one who makes it.
/// Threads: any.

namespace guestmem::dma::testing {

inline AccessControl acs(bool is_on) {
    constexpr std::uint16_t bits = 0x1d;
    return {.can = bits, .is_on = is_on ? bits : std::uint16_t{0}, .is_present = true};
}

inline PciFunction endpoint(PciAddress address, PortType port = PortType::endpoint) {
    PciFunction function{.address = address, .vendor = 0x8086, .device = 0x10d3, .class_code = 0x020000};
    function.port = port;
    function.access_control = AccessControl{};
    return function;
}

/// Of a device with several functions, without ACS.
inline PciFunction one_of_several(PciAddress address, PortType port = PortType::endpoint) {
    PciFunction function = endpoint(address, port);
    function.is_multifunction = true;
    return function;
}

inline PciFunction bridge(PciAddress address, PortType port, std::uint8_t secondary, std::uint8_t subordinate,
                          AccessControl control = {}) {
    PciFunction function{.address = address, .vendor = 0x8086, .device = 0x3420, .class_code = 0x060400};
    function.header_type = 1;
    function.secondary_bus = secondary;
    function.subordinate_bus = subordinate;
    function.port = port;
    function.access_control = control;
    return function;
}

inline PciFunction virtual_function(PciAddress address, PciAddress physical) {
    PciFunction function = endpoint(address);
    function.physical_function = physical;
    return function;
}

inline void sort(HostView& view) { std::ranges::sort(view.functions, {}, &PciFunction::address); }

/// The containments as sets of names: "00:02.0" for functions of segment 0.
inline std::set<std::set<std::string>> names_of(const Inventory& inventory) {
    std::set<std::set<std::string>> all;
    for (const Containment& containment : inventory.containments) {
        std::set<std::string> names;
        for (const std::size_t device : containment.devices) {
            const Device& known = inventory.devices[device];
            names.insert(known.pci ? to_short_string(*known.pci) : known.name);
        }
        all.insert(std::move(names));
    }
    return all;
}

/// What is wrong with an inventory as a whole; empty when nothing is.
inline std::string broken_rule(const Inventory& inventory) {
    std::vector<std::size_t> seen(inventory.devices.size(), 0);
    for (std::size_t i = 0; i < inventory.containments.size(); ++i) {
        const Containment& containment = inventory.containments[i];
        std::set<std::size_t> reached = {containment.devices.front()};
        for (std::size_t round = 0; round < containment.joins.size(); ++round) {
            for (const Join& join : containment.joins) {
                if (reached.contains(join.one) || reached.contains(join.other)) {
                    reached.insert({join.one, join.other});
                }
            }
        }
        if (reached != std::set(containment.devices.begin(), containment.devices.end())) {
            return "joins do not connect containment " + std::to_string(i);
        }
        for (const std::size_t device : containment.devices) {
            ++seen[device];
            if (inventory.devices[device].containment != i) {
                return inventory.devices[device].name + " names another containment";
            }
        }
    }
    std::set<std::pair<std::uint32_t, std::size_t>> group_places;
    std::set<std::uint32_t> groups;
    for (std::size_t i = 0; i < inventory.devices.size(); ++i) {
        if (seen[i] != 1) {
            return inventory.devices[i].name + " is in " + std::to_string(seen[i]) + " containments";
        }
        if (const auto group = inventory.devices[i].kernel_group) {
            groups.insert(*group);
            group_places.emplace(*group, inventory.devices[i].containment);
        }
    }
    return groups.size() == group_places.size() ? "" : "a kernel group is in two containments";
}

}  // namespace guestmem::dma::testing
