// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/report/grouping.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "guestmem/dma/report/words.hpp"

namespace guestmem::dma {
namespace {

/// PCI functions that are IOMMUs, sorted.
std::vector<PciAddress> unit_functions(const Inventory& inventory) {
    std::vector<PciAddress> functions;
    for (const Unit& unit : inventory.units) {
        if (unit.function) {
            functions.push_back(*unit.function);
        }
    }
    std::ranges::sort(functions);
    return functions;
}

/// Of bridges and IOMMUs alone: nothing that does DMA of its own.
bool is_infrastructure(const Inventory& inventory, const Containment& containment,
                       const std::vector<PciAddress>& units) {
    return std::ranges::all_of(containment.devices, [&](std::size_t index) {
        const Device& device = inventory.devices[index];
        return device.is_bridge || (device.pci && std::ranges::binary_search(units, *device.pci));
    });
}

const Device& first_device(const Inventory& inventory, const Containment& containment) {
    const auto at = std::ranges::find_if(
        containment.devices, [&](std::size_t index) { return !inventory.devices[index].is_bridge; });
    return inventory.devices[at == containment.devices.end() ? containment.devices.front() : *at];
}

std::size_t head_of(const Inventory& inventory, const Device& device) {
    switch (device.protection) {
        case Protection::behind_unit:
            if (device.unit) {
                return *device.unit;
            }
            break;
        case Protection::unit_not_used: return inventory.units.size();
        case Protection::none: break;
    }
    return inventory.units.size() + 1;
}

std::string bus_of(const Device& device) {
    return device.pci ? fmt::format("{:04x}:{:02x}", device.pci->segment, device.pci->bus()) : "";
}

std::string unit_text(const Unit& unit) {
    const std::string kernel =
        unit.kernel_name.empty() ? "not used by the kernel" : "kernel's " + clean(unit.kernel_name);
    return fmt::format("{}  {}, {}, from: {}", clean(unit.name), to_string(unit.kind), kernel,
                       origins_text(unit.origins));
}

}  // namespace

Shown show(const Inventory& inventory, bool has_bridges) {
    Shown shown;
    const std::vector<PciAddress> units = unit_functions(inventory);
    std::map<std::pair<std::size_t, std::string>, std::vector<const Containment*>> places;
    for (const Containment& containment : inventory.containments) {
        if (!has_bridges && is_infrastructure(inventory, containment, units)) {
            ++shown.count_hidden;
            continue;
        }
        const Device& device = first_device(inventory, containment);
        places[{head_of(inventory, device), bus_of(device)}].push_back(&containment);
    }
    for (const Unit& unit : inventory.units) {
        shown.heads.push_back(
            {.unit = &unit, .text = unit_text(unit), .is_protected = !unit.kernel_name.empty()});
    }
    shown.heads.push_back({.text = "behind a unit that the kernel does not use: reaches all memory"});
    shown.heads.push_back({.text = "behind no unit: reaches all memory"});
    for (auto& [place, containments] : places) {
        shown.heads[place.first].buses.push_back({place.second, std::move(containments)});
    }
    std::erase_if(shown.heads, [](const ShownHead& head) { return !head.unit && head.buses.empty(); });
    return shown;
}

}  // namespace guestmem::dma
