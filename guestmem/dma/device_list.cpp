// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/device_list.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "guestmem/dma/device_title.hpp"

namespace guestmem::dma {
namespace {

constexpr const char* not_shown = "not shown by the kernel";

/// The function that a selector names alone, when it names one.
std::optional<PciAddress> single_function(const Selector& selector) {
    const auto* range = std::get_if<PciRange>(&selector);
    return range != nullptr && range->first_rid == range->last_rid
               ? std::optional(PciAddress{range->segment, range->first_rid})
               : std::nullopt;
}

/// A function of which nothing but the address is known; it has no say in who is behind whom.
PciFunction unseen_function(PciAddress address) {
    PciFunction function{.address = address};
    function.access_control = AccessControl{};
    return function;
}

bool is_selected_without_bus(const Selector& selector) {
    return std::holds_alternative<MmioDevice>(selector) || std::holds_alternative<NamedDevice>(selector);
}

void insert(std::vector<std::uint32_t>& devices, std::size_t device) {
    if (devices.size() < DeviceList::most_matches) {
        devices.push_back(static_cast<std::uint32_t>(device));
    }
}

}  // namespace

std::string firmware_node_key(std::string_view path) {
    if (!path.starts_with('\\')) {
        return std::string(path);
    }
    std::string key;
    for (const char character : path) {
        if (character == '.') {
            while (key.ends_with('_')) {
                key.pop_back();
            }
        }
        key += character;
    }
    while (key.ends_with('_')) {
        key.pop_back();
    }
    return key;
}

DeviceList::DeviceList(const SourceFacts& facts, const HostView& view, ComplaintList& complaints) {
    collect_functions(facts, view, complaints);
    for (const PciFunction& function : functions_) {
        devices_.push_back(describe(function));
        kernel_units_.push_back(function.kernel_unit);
        index(devices_.size() - 1, function.firmware_node);
    }
    for (const CoverFact& cover : facts.covers) {
        spoken_.hear(cover.which);
    }
    for (const KernelGroup& group : view.groups) {
        spoken_.members.insert(group.members.begin(), group.members.end());
    }
    collect_platform_devices(view);
    collect_spoken(facts, view);
    std::ranges::stable_sort(others_, {},
                             [](const Other& other) -> const std::string& { return other.device.name; });
    for (Other& other : others_) {
        devices_.push_back(std::move(other.device));
        kernel_units_.push_back(std::move(other.kernel_unit));
        index(devices_.size() - 1, other.firmware_node);
    }
    others_.clear();
    seen_.clear();
    spoken_ = {};
}

void DeviceList::collect_functions(const SourceFacts& facts, const HostView& view,
                                   ComplaintList& complaints) {
    functions_ = view.functions;
    std::ranges::stable_sort(functions_, {}, &PciFunction::address);
    for (std::size_t i = 1; i < functions_.size(); ++i) {
        if (functions_[i].address == functions_[i - 1].address) {
            complaints.add({}, fmt::format("function {} is there twice: the first is taken",
                                           to_string(functions_[i].address)));
        }
    }
    // What only the user or a group names comes after, so that a function that is there stays.
    for (const CoverFact& cover : facts.covers) {
        if (const auto address = single_function(cover.which);
            address && cover.origin.source == Source::user) {
            functions_.push_back(unseen_function(*address));
        }
    }
    for (const KernelGroup& group : view.groups) {
        for (const std::string& member : group.members) {
            if (const auto address = parse_pci_address(member)) {
                functions_.push_back(unseen_function(*address));
                functions_.back().group = group.number;
                seen_.push_back(*address);
            }
        }
    }
    for (const PciFunction& function : view.functions) {
        seen_.push_back(function.address);
    }
    std::ranges::sort(seen_);
    std::ranges::stable_sort(functions_, {}, &PciFunction::address);
    const auto again = std::ranges::unique(functions_, {}, &PciFunction::address);
    functions_.erase(again.begin(), again.end());
}

Device DeviceList::describe(const PciFunction& function) const {
    Device device;
    device.name = to_string(function.address);
    device.pci = function.address;
    device.registers = function.first_register;
    device.title = function.vendor == 0xffff ? not_shown : device_title(function);
    device.class_code = function.class_code;
    device.driver = function.driver;
    device.is_bridge = function.header_type != 0;
    device.kernel_group = function.group;
    device.is_seen = std::ranges::binary_search(seen_, function.address);
    return device;
}

void DeviceList::Spoken::hear(const Selector& selector) {
    if (const auto* mmio = std::get_if<MmioDevice>(&selector)) {
        registers.insert(mmio->registers);
    } else if (const auto* named = std::get_if<NamedDevice>(&selector)) {
        nodes.insert(firmware_node_key(named->path));
    }
}

bool DeviceList::Spoken::has(const PlatformDevice& device) const {
    return (device.registers && registers.contains(*device.registers)) || members.contains(device.name) ||
           nodes.contains(firmware_node_key(device.firmware_node)) || nodes.contains(device.name);
}

void DeviceList::collect_platform_devices(const HostView& view) {
    for (const PlatformDevice& device : view.platform_devices) {
        if (!device.is_pci && !device.group && device.kernel_unit.empty() && !spoken_.has(device)) {
            continue;
        }
        Other other{.firmware_node = device.firmware_node, .kernel_unit = device.kernel_unit};
        other.device.name = device.name;
        other.device.registers = device.registers;
        other.device.title = device.is_pci ? device.title : device.firmware_node;
        other.device.is_bridge = device.is_bridge;
        other.device.class_code = device.class_code;
        other.device.driver = device.driver;
        other.device.kernel_group = device.group;
        others_.push_back(std::move(other));
    }
    const auto forget = [this](const std::string& node, std::optional<std::uint64_t> registers) {
        spoken_.nodes.erase(firmware_node_key(node));
        if (registers) {
            spoken_.registers.erase(*registers);
        }
    };
    for (const Other& other : others_) {
        forget(other.firmware_node, other.device.registers);
        spoken_.members.erase(other.device.name);
        spoken_.nodes.erase(other.device.name);
    }
    for (const PciFunction& function : functions_) {
        forget(function.firmware_node, function.first_register);
    }
}

void DeviceList::collect_spoken(const SourceFacts& facts, const HostView& view) {
    for (const KernelGroup& group : view.groups) {
        for (const std::string& member : group.members) {
            if (!parse_pci_address(member) && spoken_.members.erase(member) > 0) {
                Device& device = others_.emplace_back().device;
                device.name = member;
                device.kernel_group = group.number;
                device.title = not_shown;
            }
        }
    }
    for (const CoverFact& cover : facts.covers) {
        const auto* mmio = std::get_if<MmioDevice>(&cover.which);
        const auto* named = std::get_if<NamedDevice>(&cover.which);
        const bool is_alone = (mmio != nullptr && spoken_.registers.erase(mmio->registers) > 0) ||
                              (named != nullptr && spoken_.nodes.erase(firmware_node_key(named->path)) > 0);
        if (!is_alone) {
            continue;
        }
        Other& other = others_.emplace_back();
        other.device.name = to_string(cover.which);
        other.device.title = not_shown;
        other.device.is_seen = false;
        if (mmio != nullptr) {
            other.device.registers = mmio->registers;
        } else {
            other.firmware_node = named->path;
        }
    }
}

void DeviceList::index(std::size_t device, const std::string& firmware_node) {
    if (!firmware_node.empty()) {
        insert(by_node_[firmware_node_key(firmware_node)], device);
    }
    insert(by_name_[devices_[device].name], device);
    if (devices_[device].registers) {
        insert(by_registers_[*devices_[device].registers], device);
    }
}

std::vector<std::uint32_t> DeviceList::find(const Selector& selector) const {
    if (!is_selected_without_bus(selector)) {
        return {};
    }
    if (const auto* mmio = std::get_if<MmioDevice>(&selector)) {
        const auto at = by_registers_.find(mmio->registers);
        return at != by_registers_.end() ? at->second : std::vector<std::uint32_t>{};
    }
    const std::string key = firmware_node_key(std::get<NamedDevice>(selector).path);
    if (const auto at = by_node_.find(key); at != by_node_.end()) {
        return at->second;
    }
    const auto at = by_name_.find(key);
    return at != by_name_.end() ? at->second : std::vector<std::uint32_t>{};
}

std::optional<std::size_t> DeviceList::find_name(const std::string& name) const {
    const auto at = by_name_.find(name);
    return at != by_name_.end() ? std::optional<std::size_t>(at->second.front()) : std::nullopt;
}

}  // namespace guestmem::dma
