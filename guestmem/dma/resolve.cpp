// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/resolve.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

#include "guestmem/dma/containment.hpp"
#include "guestmem/dma/device_list.hpp"
#include "guestmem/dma/device_place.hpp"
#include "guestmem/dma/device_reserved.hpp"
#include "guestmem/dma/pci_alias.hpp"
#include "guestmem/dma/pci_isolation.hpp"
#include "guestmem/dma/pci_topology.hpp"
#include "guestmem/dma/shared_identity.hpp"
#include "guestmem/dma/unit_abilities.hpp"
#include "guestmem/dma/unit_table.hpp"

namespace guestmem::dma {
namespace {

/// Whether this is a node of the kind, "/intc@8000000/its@8080000", or the kernel's device of it, "8080000.its".
bool is_of_kind(const PlatformDevice& device, std::string_view kind) {
    const std::string_view node = device.firmware_node;
    const std::string_view last = node.substr(node.rfind('/') + 1);  // npos + 1 is 0
    const std::string_view name = device.name;
    return (last.starts_with(kind) && last.substr(kind.size()).starts_with('@')) ||
           (name.ends_with(kind) && name.substr(0, name.size() - kind.size()).ends_with('.'));
}

/// Whether an interrupt controller that tells devices apart (GICv3 ITS) is seen, and its opposite (GICv2m) is not;
/// nothing when neither is, or both are.
std::optional<bool> has_interrupt_translation(const HostView& view) {
    const auto has = [&](std::string_view kind) {
        return std::ranges::any_of(view.platform_devices,
                                   [&](const PlatformDevice& device) { return is_of_kind(device, kind); });
    };
    if (view.settings.architecture == "x86_64") {
        return std::nullopt;
    }
    const bool is_apart = has("its") || has("msi-controller");
    const bool is_mixed = has("v2m");
    return is_apart != is_mixed ? std::optional(is_apart) : std::nullopt;
}

/// What VFIO calls groups that it makes for devices without a unit (enable_unsafe_noiommu_mode).
constexpr std::string_view made_up_group = "vfio-noiommu";

class Resolver {
public:
    Resolver(const SourceFacts& facts, const HostView& view)
        : facts_(facts),
          view_(view),
          units_(facts, view, complaints_),
          list_(facts, view, complaints_),
          topology_(list_.functions(), complaints_),
          aliases_(topology_),
          interrupt_translation_(has_interrupt_translation(view)) {}

    Inventory resolve() {
        places_ = place_devices(facts_, list_, topology_, aliases_, units_, complaints_);
        find_groups();
        find_unit_functions();
        for (const DevicePlace& place : places_) {
            count_ids_ += place.ids.size();
        }
        for (std::uint32_t device = 0; device < places_.size(); ++device) {
            settle(device);
        }
        find_external();
        lay_reserved(facts_, view_, topology_, units_.units(), list_, complaints_);
        Inventory inventory;
        join(inventory);
        inventory.units = units_.take();
        inventory.devices = std::move(list_.devices());
        inventory.kernel_groups = view_.groups;
        inventory.platform = facts_.platform;
        inventory.settings = view_.settings;
        inventory.thunderbolt = view_.thunderbolt;
        inventory.complaints = facts_.complaints;
        inventory.complaints.insert(inventory.complaints.end(), view_.complaints.begin(),
                                    view_.complaints.end());
        std::ranges::move(complaints_.take(), std::back_inserter(inventory.complaints));
        return inventory;
    }

private:
    /// A group's list of members and its members' own links say the same on a real machine.
    void find_groups() {
        for (const KernelGroup& group : view_.groups) {
            if (group.name == made_up_group) {
                made_up_groups_.insert(group.number);
            }
            for (const std::string& member : group.members) {
                const auto device = find_member(member);
                if (!device) {
                    continue;
                }
                members_.emplace_back(group.number, static_cast<std::uint32_t>(*device));
                auto& known = list_.devices()[*device].kernel_group;
                if (known && *known != group.number) {
                    complaints_.add({Source::kernel, fmt::format("group {}", group.number)},
                                    fmt::format("{} is listed in group {} and says that it is in group {}",
                                                member, group.number, *known));
                }
                known = known.value_or(group.number);
            }
        }
        for (std::uint32_t device = 0; device < list_.devices().size(); ++device) {
            if (const auto group = list_.devices()[device].kernel_group) {
                members_.emplace_back(*group, device);
            }
        }
        std::ranges::sort(members_);
        const auto again = std::ranges::unique(members_);
        members_.erase(again.begin(), again.end());
    }

    [[nodiscard]] std::optional<std::size_t> find_member(const std::string& member) const {
        if (const auto address = parse_pci_address(member)) {
            const std::uint32_t function = topology_.find(*address);
            return function != PciTopology::none ? std::optional<std::size_t>(function) : std::nullopt;
        }
        return list_.find_name(member);
    }

    void find_unit_functions() {
        is_unit_.assign(list_.devices().size(), false);
        for (std::size_t i = 0; i < topology_.functions().size(); ++i) {
            is_unit_[i] = units_.find_function(topology_.function(i).address).has_value();
        }
    }

    /// Behind which unit the device is, after the kernel was heard, and whether that protects.
    void settle(std::uint32_t index) {
        Device& device = list_.devices()[index];
        DevicePlace& place = places_[index];
        const std::string& kernel_name = list_.kernel_unit(index);
        auto kernel_unit = kernel_name.empty() ? std::nullopt : units_.find_kernel(kernel_name);
        if (kernel_unit && is_own_unit(index, *kernel_unit)) {
            kernel_unit = std::nullopt;
        }
        if (kernel_unit && place.unit != kernel_unit) {
            hear_kernel(index, *kernel_unit);
        }
        device.unit = place.unit;
        device.origins = place.origins;
        for (const DeviceId& id : place.ids) {
            device.ids.push_back(id.id);
        }
        std::ranges::sort(device.ids);
        const auto again = std::ranges::unique(device.ids);
        device.ids.erase(again.begin(), again.end());
        device.protection = protection_of(index, kernel_unit);
        device.is_interrupt_isolated = interrupt_isolation(device);
    }

    [[nodiscard]] bool is_own_unit(std::uint32_t index, std::size_t unit) const {
        return is_unit_[index] && units_.find_function(topology_.function(index).address) == unit;
    }

    void hear_kernel(std::uint32_t index, std::size_t kernel_unit) {
        DevicePlace& place = places_[index];
        const Unit& unit = units_.units()[kernel_unit];
        const Origin origin{Source::kernel, "/sys/class/iommu/" + unit.kernel_name};
        if (place.is_said && complaints_.has_room()) {
            const std::string said = place.unit ? units_.units()[*place.unit].name : "none";
            complaints_.add(
                origin,
                fmt::format("{} is behind {} for the kernel and behind {} as it is said: the {} is "
                            "believed",
                            list_.devices()[index].name, unit.name, said, place.is_user ? "user" : "kernel"));
        }
        if (place.is_user) {
            return;
        }
        place.unit = kernel_unit;
        count_ids_ -= place.ids.size();
        place.ids.clear();
        place.origins = {origin};
        const bool is_by_requester = unit.kind == UnitKind::vt_d || unit.kind == UnitKind::amd_vi;
        if (is_by_requester && index < topology_.functions().size()) {
            place.ids = requester_ids(topology_, aliases_, index);
            if (count_ids_ + place.ids.size() > most_ids) {
                place.ids.clear();
                place.is_cut = true;
                complaints_.add(origin,
                                fmt::format("{}: more than {} identities of all devices; it counts as not "
                                            "protected",
                                            list_.devices()[index].name, most_ids));
            }
        }
        count_ids_ += place.ids.size();
    }

    [[nodiscard]] Protection protection_of(std::uint32_t index,
                                           std::optional<std::size_t> kernel_unit) const {
        const Device& device = list_.devices()[index];
        const bool is_made_up = device.kernel_group && made_up_groups_.contains(*device.kernel_group);
        if (!device.unit || is_made_up) {
            return Protection::none;
        }
        const Unit& unit = units_.units()[*device.unit];
        const bool is_elsewhere = kernel_unit && kernel_unit != device.unit;
        if (unit.kernel_name.empty() || is_elsewhere || !device.is_seen || places_[index].is_cut) {
            return Protection::unit_not_used;
        }
        if (device.kernel_group) {
            // Whoever makes a group for a unit links the device to that unit; a group without is somebody else's.
            return kernel_unit ? Protection::behind_unit : Protection::unit_not_used;
        }
        const bool comes_with_driver = unit.kind != UnitKind::vt_d && unit.kind != UnitKind::amd_vi;
        return comes_with_driver && device.driver.empty() ? Protection::behind_unit
                                                          : Protection::unit_not_used;
    }

    [[nodiscard]] std::optional<bool> interrupt_isolation(const Device& device) const {
        if (device.protection == Protection::none) {
            return false;
        }
        if (device.protection == Protection::unit_not_used) {
            return std::nullopt;
        }
        const auto of_unit = units_.units()[*device.unit].abilities.has_interrupt_remapping;
        return of_unit ? of_unit : interrupt_translation_;
    }

    void find_external() {
        std::vector<bool> is_below(topology_.functions().size(), false);
        for (const std::uint32_t index : topology_.preorder()) {
            const std::uint32_t above = topology_.parent(index);
            is_below[index] = above != PciTopology::none &&
                              (is_below[above] || topology_.function(above).is_external_facing);
            list_.devices()[index].is_external = is_below[index] || topology_.function(index).is_removable;
        }
    }

    void join(Inventory& inventory) {
        std::vector<Device>& devices = list_.devices();
        ContainmentSet set(devices.size());
        const bool is_overridden = view_.settings.command_line.find("pcie_acs_override") != std::string::npos;
        for (const PciAddress port : join_functions(topology_, aliases_, is_unit_, set)) {
            inventory.unproven_separations.push_back({port, is_overridden});
        }
        std::vector<UnitId> ids;
        for (std::uint32_t device = 0; device < devices.size(); ++device) {
            for (const DeviceId& id : places_[device].ids) {
                ids.push_back({static_cast<std::uint32_t>(*devices[device].unit), device, id});
            }
        }
        join_shared(std::move(ids), units_.units(), devices, set);
        join_kernel_groups(set);
        inventory.containments = set.take(devices);
        complain_of_splits(inventory);
    }

    void join_kernel_groups(ContainmentSet& set) {
        for (std::size_t i = 1; i < members_.size(); ++i) {
            const auto [group, device] = members_[i];
            const auto [group_before, before] = members_[i - 1];
            if (group != group_before || set.is_joined(before, device)) {
                continue;
            }
            const std::string text =
                fmt::format("the kernel has {} and {} in group {}", list_.devices()[before].name,
                            list_.devices()[device].name, group);
            complaints_.add({Source::kernel, fmt::format("group {}", group)},
                            text + ", for a reason that is not seen from here");
            set.join(JoinReason::kernel_group, before, device, text);
        }
    }

    void complain_of_splits(const Inventory& inventory) {
        for (const Containment& containment : inventory.containments) {
            if (containment.kernel_groups.size() > 1 && complaints_.has_room()) {
                complaints_.add({Source::kernel, {}},
                                fmt::format("the kernel has {} and what belongs to it in {} groups",
                                            list_.devices()[containment.devices.front()].name,
                                            containment.kernel_groups.size()));
            }
        }
        const auto& separations = inventory.unproven_separations;
        if (separations.empty()) {
            return;
        }
        constexpr std::size_t most_named = 8;
        std::string ports;
        for (std::size_t i = 0; i < std::min(separations.size(), most_named); ++i) {
            ports += (i == 0 ? "" : ", ") + to_string(separations[i].port);
        }
        if (separations.size() > most_named) {
            ports += fmt::format(" and {} more", separations.size() - most_named);
        }
        complaints_.add(
            {Source::kernel, {}},
            fmt::format("the kernel separates what is at {} without ACS being seen there: {}", ports,
                        separations.front().is_overridden ? "pcie_acs_override is on its command line"
                                                          : "a quirk of the kernel, or an override"));
    }

    const SourceFacts& facts_;
    const HostView& view_;
    ComplaintList complaints_;
    UnitTable units_;
    DeviceList list_;
    PciTopology topology_;
    PciAliases aliases_;
    std::optional<bool> interrupt_translation_;
    std::vector<DevicePlace> places_;
    std::vector<std::pair<std::uint32_t, std::uint32_t>> members_;  ///< group, device: ascending
    std::unordered_set<std::uint32_t> made_up_groups_;
    std::size_t count_ids_ = 0;  ///< of all places
    std::vector<bool> is_unit_;
};

}  // namespace

Inventory resolve(const SourceFacts& facts, const HostView& view) { return Resolver(facts, view).resolve(); }

}  // namespace guestmem::dma
