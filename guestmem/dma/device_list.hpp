// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "guestmem/dma/complaint_list.hpp"
#include "guestmem/dma/inventory.hpp"

/// The devices of an inventory: PCI functions, platform devices that DMA is said of, and what is only spoken of.
///
/// Concepts: a platform device is listed when the kernel has it behind a unit or in a group, or when a fact selects it:
/// most platform devices do no DMA at all. What a cover names and the kernel does not show is a device, too, since
/// somebody means to use it (Device::is_seen is false); so is a member of a kernel group that the kernel shows nowhere
/// else. A PCI function without a PciAddress (a segment above ffff) is among the others and always listed.
/// Contract: devices are PCI functions by address, then the others by name; the first ones have the index of their
/// PciFunction in functions(). Functions that come twice are one and a complaint. ACPI paths are compared without the
/// underscores that fill names to four characters: "\_SB_.GPIO" is "\_SB.GPIO".
/// Limits: a selector selects at most most_matches devices by name or registers.
/// Cost: n log n.
/// Threads: any, once made.

namespace guestmem::dma {

class DeviceList {
public:
    static constexpr std::size_t most_matches = 16;

    DeviceList(const SourceFacts& facts, const HostView& view, ComplaintList& complaints);

    [[nodiscard]] std::span<const PciFunction> functions() const { return functions_; }
    [[nodiscard]] std::vector<Device>& devices() { return devices_; }
    [[nodiscard]] const std::vector<Device>& devices() const { return devices_; }
    /// "dmar0", or empty.
    [[nodiscard]] const std::string& kernel_unit(std::size_t device) const { return kernel_units_[device]; }
    /// Devices that this selects by registers or name; none for other selectors.
    [[nodiscard]] std::vector<std::uint32_t> find(const Selector& selector) const;
    /// By the kernel's name: "0000:00:02.0", "9000000.dma".
    [[nodiscard]] std::optional<std::size_t> find_name(const std::string& name) const;

private:
    struct Other {
        Device device = {};
        std::string firmware_node = {};
        std::string kernel_unit = {};
    };

    void collect_functions(const SourceFacts& facts, const HostView& view, ComplaintList& complaints);
    void collect_platform_devices(const HostView& view);
    void collect_spoken(const SourceFacts& facts, const HostView& view);
    void index(std::size_t device, const std::string& firmware_node);
    [[nodiscard]] Device describe(const PciFunction& function) const;

    /// What is spoken of and was not met on the machine yet.
    struct Spoken {
        std::unordered_set<std::string> nodes = {};
        std::unordered_set<std::uint64_t> registers = {};
        std::unordered_set<std::string> members = {};

        void hear(const Selector& selector);
        [[nodiscard]] bool has(const PlatformDevice& device) const;
    };

    std::vector<PciFunction> functions_;
    std::vector<PciAddress> seen_;  ///< functions that the kernel shows, or has in a group: ascending
    std::vector<Other> others_;
    Spoken spoken_;
    std::vector<Device> devices_;
    std::vector<std::string> kernel_units_;
    std::unordered_map<std::string, std::vector<std::uint32_t>> by_node_;
    std::unordered_map<std::string, std::vector<std::uint32_t>> by_name_;
    std::unordered_map<std::uint64_t, std::vector<std::uint32_t>> by_registers_;
};

/// An ACPI path without filling underscores; any other text as it is.
[[nodiscard]] std::string firmware_node_key(std::string_view path);

}  // namespace guestmem::dma
