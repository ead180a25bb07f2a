// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/plan_problems.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include "guestmem/base/sizes.hpp"

namespace guestmem::dma {
namespace {

using Word = std::string_view;

constexpr std::size_t max_named_of_group = 8;

/// VFIO's own, and those of vendors: "vfio-pci", "mlx5_vfio_pci".
bool is_vfio_driver(Word driver) {
    return driver.starts_with("vfio-") || driver.ends_with("vfio_pci") || driver.ends_with("vfio-pci");
}

/// Does no DMA on its own: its device may be in the group of a VM's.
bool is_quiet_driver(Word driver) { return driver.empty() || driver == "pci-stub" || is_vfio_driver(driver); }

/// What takes a function from its driver and gives it to VFIO.
std::vector<std::string> bind_commands(const Device& device) {
    if (!device.pci) return {};
    const std::string folder = "/sys/bus/pci/devices/" + to_string(*device.pci);
    std::vector<std::string> commands{"modprobe vfio-pci",
                                      fmt::format("echo vfio-pci > {}/driver_override", folder)};
    if (!device.driver.empty())
        commands.push_back(fmt::format("echo {} > {}/driver/unbind", to_string(*device.pci), folder));
    commands.push_back(fmt::format("echo {} > /sys/bus/pci/drivers_probe", to_string(*device.pci)));
    return commands;
}

std::string address_range(std::uint64_t first, std::uint64_t last) {
    return fmt::format("{:#x} to {:#x}", first, last);
}

}  // namespace

std::string_view to_string(ProblemKind kind) {
    switch (kind) {
        case ProblemKind::no_such_device: return "no-such-device";
        case ProblemKind::is_bridge: return "is-bridge";
        case ProblemKind::claimed_twice: return "claimed-twice";
        case ProblemKind::acs_overridden: return "acs-overridden";
        case ProblemKind::containment_split: return "containment-split";
        case ProblemKind::not_protected: return "not-protected";
        case ProblemKind::group_not_viable: return "group-not-viable";
        case ProblemKind::driver_bound: return "driver-bound";
        case ProblemKind::firmware_memory: return "firmware-memory";
        case ProblemKind::interrupts_not_isolated: return "interrupts-not-isolated";
        case ProblemKind::reserved_overlap: return "reserved-overlap";
        case ProblemKind::beyond_unit: return "beyond-unit";
        case ProblemKind::entry_limit: return "entry-limit";
        case ProblemKind::memory_lock: return "memory-lock";
        case ProblemKind::granule: return "granule";
        case ProblemKind::permission_conflict: return "permission-conflict";
        case ProblemKind::permission_kept_wider: return "permission-kept-wider";
        case ProblemKind::read_only_memory: return "read-only-memory";
        case ProblemKind::not_settled: return "not-settled";
    }
    return "unknown";
}

Problem& PlanProblems::add(ProblemKind kind, std::size_t vm, const GrantedDevice& granted, std::string text) {
    problems_.push_back({.kind = kind,
                         .vm = grants_.vms[vm].name,
                         .device = granted.name,
                         .line = granted.line,
                         .text = std::move(text)});
    return problems_.back();
}

Problem& PlanProblems::add_for_vm(ProblemKind kind, std::size_t vm, std::string text) {
    problems_.push_back(
        {.kind = kind, .vm = grants_.vms[vm].name, .line = grants_.vms[vm].line, .text = std::move(text)});
    return problems_.back();
}

void PlanProblems::no_such_device(std::size_t vm, const GrantedDevice& granted) {
    add(ProblemKind::no_such_device, vm, granted,
        fmt::format(
            "there is no device '{}' on this machine: write an address as in 0000:01:00.0, or mem:0xADDRESS",
            granted.name))
        .commands = {"guestmem dma discover"};
}

void PlanProblems::claimed_twice(std::size_t vm, const GrantedDevice& granted, std::size_t other_vm,
                                 std::size_t other_line) {
    add(ProblemKind::claimed_twice, vm, granted,
        vm == other_vm ? fmt::format("'{}' is the VM's already, by line {}", granted.name, other_line)
                       : fmt::format("'{}' is VM '{}''s by line {}: a device has one VM", granted.name,
                                     grants_.vms[other_vm].name, other_line))
        .other_vm = grants_.vms[other_vm].name;
}

void PlanProblems::look_at_device(std::size_t vm, const GrantedDevice& granted, std::size_t index) {
    const Device& device = inventory_.devices[index];
    if (device.is_bridge)
        add(ProblemKind::is_bridge, vm, granted,
            fmt::format("'{}' is a bridge: requests of the devices below it pass it; give those",
                        granted.name));
    if (device.protection != Protection::behind_unit)
        add(ProblemKind::not_protected, vm, granted,
            fmt::format(
                "'{}' is behind {}: it would reach all memory of the host", granted.name,
                device.protection == Protection::none ? "no IOMMU" : "an IOMMU that the kernel does not use"))
            .commands = {"guestmem dma check"};
    look_at_driver(vm, granted, device);
    const auto fixed = std::ranges::find(device.reserved, ReservedKind::direct, &Reserved::kind);
    if (fixed != device.reserved.end())
        add(ProblemKind::firmware_memory, vm, granted,
            fmt::format("firmware has '{}' reach {} always (from {}): the kernel refuses to give it away",
                        granted.name, address_range(fixed->first, fixed->last), to_string(fixed->origin)));
    if (device.protection == Protection::behind_unit && device.is_interrupt_isolated == false) {
        Problem& problem =
            add(ProblemKind::interrupts_not_isolated, vm, granted,
                fmt::format("interrupts of '{}' are not isolated: its VM could raise any of the host's",
                            granted.name));
        problem.is_fatal = !inventory_.settings.may_use_unsafe_interrupts.value_or(false);
        problem.commands = {"guestmem dma check"};
    }
    if (device.protection == Protection::behind_unit && !device.is_interrupt_isolated)
        add(ProblemKind::not_settled, vm, granted,
            fmt::format("whether interrupts of '{}' are isolated is not known", granted.name))
            .is_fatal = false;
}

void PlanProblems::look_at_driver(std::size_t vm, const GrantedDevice& granted, const Device& device) {
    if (device.is_bridge || is_vfio_driver(device.driver)) return;
    Problem& problem =
        add(ProblemKind::driver_bound, vm, granted,
            device.driver.empty() ? fmt::format("'{}' has no driver yet: VFIO has to take it", granted.name)
                                  : fmt::format("'{}' is used by the host's driver '{}': VFIO has to take it",
                                                granted.name, device.driver));
    problem.is_fatal = !device.driver.empty();
    problem.commands = bind_commands(device);
}

void PlanProblems::look_at_separations(std::size_t count_vms) {
    const auto forced =
        std::ranges::find(inventory_.unproven_separations, true, &UnprovenSeparation::is_overridden);
    if (forced == inventory_.unproven_separations.end()) return;
    for (std::size_t vm = 0; vm < grants_.vms.size(); ++vm) {
        if (grants_.vms[vm].devices.empty()) continue;
        // Between two VMs nobody may reach the other; between a VM and the host the host has said so.
        add_for_vm(
            ProblemKind::acs_overridden, vm,
            fmt::format(
                "'pcie_acs_override' keeps devices apart that can reach each other, as at {}: what VM '{}' "
                "has can reach other devices past the IOMMU",
                to_string(forced->port), grants_.vms[vm].name))
            .is_fatal = count_vms > 1;
    }
}

void PlanProblems::look_at_vfio(std::size_t vm) {
    const KernelSettings& settings = inventory_.settings;
    if (settings.has_vfio != false || settings.has_iommufd.value_or(false)) return;
    Problem& problem = add_for_vm(ProblemKind::not_settled, vm,
                                  "VFIO is not loaded: whether the kernel has it is not known");
    problem.is_fatal = false;
    problem.commands = {"modprobe vfio-pci"};
}

void PlanProblems::look_at_reach(std::size_t vm, const GrantedDevice& granted, const Device& device,
                                 const Reach& reach, std::uint64_t granule) {
    const Unit* unit = device.unit ? &inventory_.units[*device.unit] : nullptr;
    const auto& memory = grants_.vms[vm].memory;
    if (reach.first_conflict)
        add(ProblemKind::permission_conflict, vm, granted,
            fmt::format(
                "ranges of '{}' overlap at {:#x} with different permissions: it would have those of all",
                granted.name, *reach.first_conflict));
    if (reach.first_grown_conflict)
        add(ProblemKind::permission_conflict, vm, granted,
            fmt::format(
                "ranges of '{}' share the {} page at {:#x} and differ in permissions: it would have those of all",
                granted.name, format_size(granule), *reach.first_grown_conflict & ~(granule - 1)));
    if (reach.grown_bytes != 0)
        add(ProblemKind::granule, vm, granted,
            fmt::format("'{}' reaches {:#x} bytes more than granted: ranges grow to whole pages of {}",
                        granted.name, reach.grown_bytes, format_size(granule)))
            .is_fatal = false;
    if (reach.ragged_memory)
        add(ProblemKind::granule, vm, granted,
            fmt::format(
                "memory '{}' does not begin and end at whole pages of {}, which is the least that the unit of "
                "'{}' can map",
                memory[*reach.ragged_memory].name, format_size(granule), granted.name));
    const bool has_write_only = std::ranges::any_of(reach.mappings, [](const ReachMapping& mapping) {
        return mapping.permission.can_write && !mapping.permission.can_read;
    });
    if (has_write_only && unit != nullptr && unit->abilities.can_forbid_reads == false)
        add(ProblemKind::permission_kept_wider, vm, granted,
            fmt::format("'{}' can also read what it was granted to write: {} cannot forbid that",
                        granted.name, to_string(unit->kind)))
            .is_fatal = false;
    for (const GrantedRange& range : granted.ranges) {
        if (!range.permission.can_write || memory[range.memory].is_writable) continue;
        add(ProblemKind::read_only_memory, vm, granted,
            fmt::format("'{}' may write to memory '{}', which the VM itself may only read", granted.name,
                        memory[range.memory].name));
        break;
    }
    if (unit != nullptr && unit->abilities.input_bits && *unit->abilities.input_bits < 64 &&
        !reach.mappings.empty()) {
        const ReachMapping& last = reach.mappings.back();
        if (((last.iova + (last.size_bytes - 1)) >> *unit->abilities.input_bits) != 0)
            add(ProblemKind::beyond_unit, vm, granted,
                fmt::format("'{}' would reach {:#x}, and {} has {}-bit addresses", granted.name,
                            last.iova + (last.size_bytes - 1), unit->name, *unit->abilities.input_bits));
    }
    look_at_reserved(vm, granted, device, reach);
}

void PlanProblems::look_at_reserved(std::size_t vm, const GrantedDevice& granted, const Device& device,
                                    const Reach& reach) {
    for (const Reserved& reserved : device.reserved) {
        if (reserved.kind != ReservedKind::msi && reserved.kind != ReservedKind::reserved) continue;
        // The first mapping that ends behind the start of the reserved range.
        const auto at = std::ranges::partition_point(reach.mappings, [&](const ReachMapping& mapping) {
            return mapping.iova + (mapping.size_bytes - 1) < reserved.first;
        });
        if (at == reach.mappings.end() || at->iova > reserved.last) continue;
        add(ProblemKind::reserved_overlap, vm, granted,
            fmt::format(
                "memory '{}' lies over {}, {} for '{}' (from {}): move the memory in the guest",
                grants_.vms[vm].memory[at->memory].name, address_range(reserved.first, reserved.last),
                reserved.kind == ReservedKind::msi ? "where interrupts are written" : "which is reserved",
                granted.name, to_string(reserved.origin)));
    }
}

void PlanProblems::look_at_group(std::size_t vm, const GrantedDevice& granted, std::size_t index,
                                 const std::vector<std::optional<std::size_t>>& vm_of_device) {
    const Containment& containment = inventory_.containments[inventory_.devices[index].containment];
    std::size_t count = 0;
    for (const std::size_t other : containment.devices) {
        const Device& device = inventory_.devices[other];
        // Those that are granted have problems of their own.
        if (other == index || vm_of_device[other] || device.is_bridge || is_quiet_driver(device.driver))
            continue;
        if (++count > max_named_of_group) continue;
        const auto join = std::ranges::find_if(
            containment.joins, [&](const Join& one) { return one.one == other || one.other == other; });
        add(ProblemKind::group_not_viable, vm, granted,
            fmt::format(
                "'{}' cannot be given alone: '{}' is in its group and used by the host's driver '{}'{}",
                granted.name, device.name, device.driver,
                join == containment.joins.end() ? "" : fmt::format(" ({})", join->text)))
            .commands = bind_commands(device);
    }
    if (count > max_named_of_group)
        add(ProblemKind::group_not_viable, vm, granted,
            fmt::format("'{}' cannot be given alone: {} devices more of its group are used by the host",
                        granted.name, count - max_named_of_group));
}

void PlanProblems::split_between_vms(std::size_t vm, const GrantedDevice& granted, std::size_t index,
                                     std::size_t other_vm, std::size_t other_index) {
    add(ProblemKind::containment_split, vm, granted,
        fmt::format("'{}' can only be contained together with '{}', which is VM '{}''s: give both to one VM",
                    inventory_.devices[index].name, inventory_.devices[other_index].name,
                    grants_.vms[other_vm].name))
        .other_vm = grants_.vms[other_vm].name;
}

void PlanProblems::split_by_reach(std::size_t vm, const GrantedDevice& granted, std::size_t index,
                                  std::size_t other_index) {
    add(ProblemKind::containment_split, vm, granted,
        fmt::format(
            "'{}' can only be contained together with '{}', and reaches other memory: give both the same reach",
            inventory_.devices[index].name, inventory_.devices[other_index].name));
}

void PlanProblems::too_many_entries(std::size_t vm, const std::string& device, std::size_t count,
                                    std::uint64_t limit) {
    Problem& problem = add_for_vm(
        ProblemKind::entry_limit, vm,
        fmt::format("'{}' needs {} mappings, and VFIO takes {} (dma_entry_limit)", device, count, limit));
    problem.device = device;
    problem.commands = {
        fmt::format("echo {} > /sys/module/vfio_iommu_type1/parameters/dma_entry_limit", count)};
}

void PlanProblems::too_much_locked(std::size_t vm, std::uint64_t bytes, std::uint64_t limit) {
    add_for_vm(ProblemKind::memory_lock, vm,
               fmt::format("{} would be locked, and the limit is {} (RLIMIT_MEMLOCK)", format_size(bytes),
                           format_size(limit)))
        .commands = {fmt::format("ulimit -l {}", (bytes + 1023) / 1024),
                     fmt::format("systemctl edit UNIT  # [Service] LimitMEMLOCK={}", bytes)};
}

void PlanProblems::more_than_there_is(std::size_t vm, std::uint64_t bytes, std::uint64_t total) {
    add_for_vm(
        ProblemKind::memory_lock, vm,
        fmt::format("{} would be locked, and the machine has {}", format_size(bytes), format_size(total)));
}

std::vector<Problem> PlanProblems::take(std::string_view only_vm) {
    if (!only_vm.empty())
        std::erase_if(problems_, [&](const Problem& problem) {
            return problem.vm != only_vm && problem.other_vm != only_vm;
        });
    std::ranges::sort(problems_, [](const Problem& one, const Problem& other) {
        return std::tie(one.line, one.device, one.kind, one.text) <
               std::tie(other.line, other.device, other.kind, other.text);
    });
    return std::move(problems_);
}

}  // namespace guestmem::dma
