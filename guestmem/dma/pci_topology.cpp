// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/pci_topology.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace guestmem::dma {
namespace {

constexpr std::uint32_t bus_key(std::uint16_t segment, std::uint8_t bus) {
    return std::uint32_t{segment} << 8 | bus;
}

std::uint32_t bus_of(PciAddress address) { return bus_key(address.segment, address.bus()); }

}  // namespace

PciTopology::PciTopology(std::span<const PciFunction> functions, ComplaintList& complaints)
    : functions_(functions) {
    find_ways(complaints);
    find_parents();
    make_preorder();
}

void PciTopology::find_ways(ComplaintList& complaints) {
    for (std::uint32_t i = 0; i < functions_.size(); ++i) {
        const PciFunction& bridge = functions_[i];
        const std::uint8_t secondary = bridge.secondary_bus.value_or(0);
        if (bridge.header_type == 0 || bridge.physical_function || !bridge.secondary_bus ||
            (secondary == 0 && bridge.subordinate_bus.value_or(0) == 0)) {
            continue;  // not a bridge, or nobody has set it up
        }
        if (secondary <= bridge.address.bus()) {
            complaints.add({},
                           fmt::format("bridge {}: its secondary bus {:02x} is not above its own bus: it is "
                                       "taken to lead nowhere",
                                       to_string(bridge.address), secondary));
            continue;
        }
        const std::uint8_t last = bridge.subordinate_bus.value_or(secondary);
        if (last < secondary) {
            complaints.add({}, fmt::format("bridge {}: its subordinate bus {:02x} is below its secondary bus "
                                           "{:02x}: the latter is taken for both",
                                           to_string(bridge.address), last, secondary));
        }
        ways_.push_back({bus_key(bridge.address.segment, secondary),
                         bus_key(bridge.address.segment, std::max(last, secondary)), i});
    }
    std::ranges::stable_sort(ways_, {}, &Way::bus);
    for (std::size_t i = 1; i < ways_.size(); ++i) {
        if (ways_[i].bus == ways_[i - 1].bus) {
            complaints.add({},
                           fmt::format("bridges {} and {} have the same secondary bus {:02x}",
                                       to_string(functions_[ways_[i - 1].bridge].address),
                                       to_string(functions_[ways_[i].bridge].address), ways_[i].bus & 0xff));
        }
    }
    const auto again = std::ranges::unique(ways_, {}, &Way::bus);
    ways_.erase(again.begin(), again.end());
}

std::uint32_t PciTopology::bridge_to(std::uint32_t bus) const {
    // The nearest is the one with the highest secondary bus that still has the bus in its range. A segment has at
    // most 255 of them.
    auto at = std::ranges::upper_bound(ways_, bus, {}, &Way::bus);
    while (at != ways_.begin()) {
        --at;
        if (at->bus >> 8 != bus >> 8) {
            break;
        }
        if (at->last >= bus) {
            return at->bridge;
        }
    }
    return none;
}

void PciTopology::find_parents() {
    parents_.assign(functions_.size(), none);
    for (std::uint32_t i = 0; i < functions_.size(); ++i) {
        const bool is_on_same_bus =
            i > 0 && bus_of(functions_[i].address) == bus_of(functions_[i - 1].address);
        // So far each function has the parent of its bus, virtual ones too.
        parents_[i] = is_on_same_bus ? parents_[i - 1] : bridge_to(bus_of(functions_[i].address));
    }
    const std::vector<std::uint32_t> by_bus = parents_;
    for (std::uint32_t i = 0; i < functions_.size(); ++i) {
        if (!functions_[i].physical_function) {
            continue;
        }
        const std::uint32_t physical = find(*functions_[i].physical_function);
        if (physical != none && !functions_[physical].physical_function) {
            parents_[i] = by_bus[physical];
        }
    }
}

void PciTopology::make_preorder() {
    const auto count = static_cast<std::uint32_t>(functions_.size());
    std::vector<std::uint32_t> first_child(count, none);
    std::vector<std::uint32_t> next_sibling(count, none);
    std::vector<std::uint32_t> stack;
    for (std::uint32_t i = count; i-- > 0;) {
        if (parents_[i] == none) {
            stack.push_back(i);
        } else {
            next_sibling[i] = first_child[parents_[i]];
            first_child[parents_[i]] = i;
        }
    }
    positions_.assign(count, 0);
    preorder_.reserve(count);
    std::vector<std::uint32_t> children;
    while (!stack.empty()) {
        const std::uint32_t index = stack.back();
        stack.pop_back();
        positions_[index] = static_cast<std::uint32_t>(preorder_.size());
        preorder_.push_back(index);
        children.clear();
        for (std::uint32_t child = first_child[index]; child != none; child = next_sibling[child]) {
            children.push_back(child);
        }
        stack.insert(stack.end(), children.rbegin(), children.rend());
    }
    last_positions_ = positions_;
    for (std::uint32_t i = count; i-- > 0;) {
        const std::uint32_t index = preorder_[i];
        if (const std::uint32_t above = parents_[index]; above != none) {
            last_positions_[above] = std::max(last_positions_[above], last_positions_[index]);
        }
    }
}

std::uint32_t PciTopology::find(PciAddress address) const {
    const auto at = std::ranges::lower_bound(functions_, address, {}, &PciFunction::address);
    return at != functions_.end() && at->address == address
               ? static_cast<std::uint32_t>(at - functions_.begin())
               : none;
}

std::uint32_t PciTopology::walk(const PciPath& path) const {
    std::uint8_t bus = path.start_bus;
    std::uint32_t found = none;
    for (std::size_t i = 0; i < path.hops.size(); ++i) {
        if (i > 0) {
            const PciFunction& bridge = functions_[found];
            if (bridge.header_type == 0 || bridge.secondary_bus.value_or(0) <= bus) {
                return none;
            }
            bus = *bridge.secondary_bus;
        }
        found = find(pci_address(path.segment, bus, path.hops[i].device, path.hops[i].function));
        if (found == none) {
            return none;
        }
    }
    return found;
}

}  // namespace guestmem::dma
