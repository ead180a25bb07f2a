// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <map>
#include <tuple>
#include <utility>

#include "guestmem/base/sizes.hpp"
#include "guestmem/dma/plan_problems.hpp"
#include "guestmem/dma/reach.hpp"

namespace guestmem::dma {
namespace {

constexpr double gib = 1024.0 * 1024.0 * 1024.0;
// Seconds for a GiB, of Linux 5.11 to 6.16 on x86 servers.
constexpr double seconds_small_pages = 0.0168;
constexpr double seconds_large_pages = 0.003;
constexpr double seconds_unpopulated = 0.26;
constexpr std::uint64_t large_page_bytes = std::uint64_t{2} << 20;
/// Every unit that Linux drives has it; for one whose abilities nobody tells.
constexpr std::uint64_t usual_page_sizes = 4096;
/// vfio_iommu_type1 without a word about it.
constexpr std::uint64_t usual_entry_limit = 65535;

/// A device line of the grants, with the device that it means.
struct Claim {
    std::size_t vm = 0;
    const GrantedDevice* granted = nullptr;
    std::optional<std::size_t> device = {};
    std::size_t domain = 0;
    bool is_repeated = false;  ///< by the same VM: one plan is enough
};

/// Of domains that are alike, nearly surely: VM, unit, what hash_of() says of the mappings.
using DomainKey = std::tuple<std::size_t, std::optional<std::size_t>, std::uint64_t>;

std::uint64_t hash_of(const std::vector<ReachMapping>& mappings) {
    std::uint64_t hash = 0xcbf2'9ce4'8422'2325;
    const auto mix = [&](std::uint64_t value) {
        hash = std::rotl((hash ^ value) * 0x9e37'79b9'7f4a'7c15, 29);
    };
    for (const ReachMapping& mapping : mappings) {
        mix(mapping.iova);
        mix(mapping.size_bytes);
        mix((mapping.permission.can_read ? 1U : 0U) | (mapping.permission.can_write ? 2U : 0U));
    }
    return hash;
}

bool is_same(const std::vector<PlannedMapping>& planned, const std::vector<ReachMapping>& mappings) {
    return std::ranges::equal(planned, mappings, [](const PlannedMapping& one, const ReachMapping& other) {
        return one.iova == other.iova && one.size_bytes == other.size_bytes && one.asked == other.permission;
    });
}

class Planner {
public:
    Planner(const Inventory& inventory, const Grants& grants, std::string_view only_vm)
        : inventory_(inventory), grants_(grants), only_vm_(only_vm), problems_(inventory, grants) {}

    Plan make() {
        for (const GrantedVm& vm : grants_.vms)
            plan_.vms.push_back({.name = vm.name, .memory_lock_bytes = limit_of(vm)});
        gather_claims();
        check_claims();
        for (Claim& claim : claims_)
            if (claim.device && !claim.is_repeated && is_wanted(claim.vm)) plan_device(claim);
        check_containments();
        problems_.look_at_separations(static_cast<std::size_t>(
            std::ranges::count_if(grants_.vms, [](const GrantedVm& vm) { return !vm.devices.empty(); })));
        check_entries();
        for (std::size_t vm = 0; vm < plan_.vms.size(); ++vm)
            if (is_wanted(vm) && !grants_.vms[vm].devices.empty()) check_limits(vm);
        plan_.problems = problems_.take(only_vm_);
        return std::move(plan_);
    }

private:
    bool is_wanted(std::size_t vm) const { return only_vm_.empty() || grants_.vms[vm].name == only_vm_; }

    std::optional<std::uint64_t> limit_of(const GrantedVm& vm) const {
        if (vm.is_memory_lock_unlimited) return std::nullopt;
        return vm.memory_lock_bytes ? vm.memory_lock_bytes : inventory_.settings.memory_lock_bytes;
    }

    void gather_claims() {
        for (std::size_t vm = 0; vm < grants_.vms.size(); ++vm) {
            for (const GrantedDevice& granted : grants_.vms[vm].devices) {
                claims_.push_back(
                    {.vm = vm, .granted = &granted, .device = inventory_.find_device(granted.name)});
                if (!claims_.back().device) problems_.no_such_device(vm, granted);
            }
        }
    }

    /// What is wrong with a device whatever its reach is, and with two lines that mean the same device.
    void check_claims() {
        std::vector<const Claim*> first(inventory_.devices.size(), nullptr);
        for (Claim& claim : claims_) {
            if (!claim.device) continue;
            const Claim*& before = first[*claim.device];
            if (before != nullptr) {
                claim.is_repeated = before->vm == claim.vm;
                problems_.claimed_twice(claim.vm, *claim.granted, before->vm, before->granted->line);
            } else {
                before = &claim;
            }
            if (!claim.is_repeated) problems_.look_at_device(claim.vm, *claim.granted, *claim.device);
        }
        granted_to_ = std::move(first);
    }

    void plan_device(Claim& claim) {
        const Device& device = inventory_.devices[*claim.device];
        const Unit* unit = device.unit ? &inventory_.units[*device.unit] : nullptr;
        const std::uint64_t page_sizes = unit != nullptr && unit->abilities.page_sizes != 0
                                             ? unit->abilities.page_sizes
                                             : usual_page_sizes;
        const std::uint64_t granule = std::max(page_sizes & (~page_sizes + 1), page_size_bytes);
        const Reach& reach = reach_for(claim, granule);
        problems_.look_at_reach(claim.vm, *claim.granted, device, reach, granule);
        auto& alike = domains_[DomainKey{claim.vm, device.unit, hash_of(reach.mappings)}];
        const auto same = std::ranges::find_if(alike, [&](std::size_t domain) {
            return is_same(plan_.domains[domain].mappings, reach.mappings);
        });
        claim.domain = same == alike.end() ? plan_.domains.size() : *same;
        if (same == alike.end()) {
            alike.push_back(claim.domain);
            add_domain(claim, unit, page_sizes, reach);
        }
        plan_.domains[claim.domain].devices.push_back(device.name);
    }

    /// The reach of a whole VM is made once.
    const Reach& reach_for(const Claim& claim, std::uint64_t granule) {
        const auto& memory = grants_.vms[claim.vm].memory;
        if (!claim.granted->reaches_all) {
            reach_ = reach_of(memory, *claim.granted, granule);
            return reach_;
        }
        const auto [at, is_first] = whole_reaches_.try_emplace({claim.vm, granule});
        if (is_first) at->second = reach_of(memory, *claim.granted, granule);
        return at->second;
    }

    void add_domain(const Claim& claim, const Unit* unit, std::uint64_t page_sizes, const Reach& reach) {
        PlannedDomain domain;
        domain.vm = claim.vm;
        if (unit != nullptr) domain.unit = unit->name;
        const bool can_forbid_reads = unit == nullptr || unit->abilities.can_forbid_reads.value_or(true);
        domain.mappings.reserve(reach.mappings.size());
        for (const ReachMapping& mapping : reach.mappings) {
            const VmMemory& memory = grants_.vms[claim.vm].memory[mapping.memory];
            const std::uint64_t largest =
                std::bit_floor(std::max(memory.page_bytes, page_sizes & (~page_sizes + 1)));
            PlannedMapping planned{.iova = mapping.iova,
                                   .size_bytes = mapping.size_bytes,
                                   .asked = mapping.permission,
                                   .kept = mapping.permission,
                                   .page_bytes = page_for(mapping, page_sizes, largest)};
            if (!can_forbid_reads && planned.kept.can_write) planned.kept.can_read = true;
            domain.mapped_bytes += mapping.size_bytes;
            domain.page_entries += count_page_entries(mapping.iova, mapping.size_bytes, page_sizes, largest);
            const double size_gib = static_cast<double>(mapping.size_bytes) / gib;
            domain.seconds_populated +=
                size_gib *
                (memory.page_bytes >= large_page_bytes ? seconds_large_pages : seconds_small_pages);
            domain.seconds_unpopulated += size_gib * seconds_unpopulated;
            domain.mappings.push_back(planned);
        }
        domain.locked_bytes = domain.mapped_bytes;
        plan_.vms[claim.vm].locked_bytes += domain.locked_bytes;
        plan_.domains.push_back(std::move(domain));
    }

    /// The largest page of the unit that fits into the mapping at all.
    static std::uint64_t page_for(const ReachMapping& mapping, std::uint64_t page_sizes,
                                  std::uint64_t largest) {
        for (std::uint64_t page = largest; page != 0; page >>= 1) {
            if ((page_sizes & page) == 0) continue;
            const std::uint64_t lead = (~mapping.iova + 1) & (page - 1);
            if (lead < mapping.size_bytes && mapping.size_bytes - lead >= page) return page;
        }
        return page_sizes & (~page_sizes + 1);
    }

    /// Devices that can only be contained together have to be in one domain.
    void check_containments() {
        std::vector<const Claim*> first(inventory_.containments.size(), nullptr);
        for (const Claim& claim : claims_) {
            if (!claim.device) continue;
            const std::size_t containment = inventory_.devices[*claim.device].containment;
            const Claim*& before = first[containment];
            if (before == nullptr) {
                before = &claim;
                problems_.look_at_group(claim.vm, *claim.granted, *claim.device, granted_vms());
            } else if (before->device == claim.device) {
                continue;
            } else if (before->vm != claim.vm) {
                problems_.split_between_vms(claim.vm, *claim.granted, *claim.device, before->vm,
                                            *before->device);
            } else if (is_wanted(claim.vm) && before->domain != claim.domain) {
                problems_.split_by_reach(claim.vm, *claim.granted, *claim.device, *before->device);
            }
        }
    }

    /// By device: whose it is to be.
    const std::vector<std::optional<std::size_t>>& granted_vms() {
        if (vm_of_device_.empty()) {
            vm_of_device_.resize(inventory_.devices.size());
            for (std::size_t i = 0; i < granted_to_.size(); ++i)
                if (granted_to_[i] != nullptr) vm_of_device_[i] = granted_to_[i]->vm;
        }
        return vm_of_device_;
    }

    void check_entries() {
        const std::uint64_t limit = inventory_.settings.dma_entry_limit.value_or(usual_entry_limit);
        for (const PlannedDomain& domain : plan_.domains)
            if (domain.mappings.size() > limit)
                problems_.too_many_entries(domain.vm, domain.devices.front(), domain.mappings.size(), limit);
    }

    void check_limits(std::size_t vm) {
        problems_.look_at_vfio(vm);
        const PlannedVm& planned = plan_.vms[vm];
        if (planned.memory_lock_bytes && planned.locked_bytes > *planned.memory_lock_bytes)
            problems_.too_much_locked(vm, planned.locked_bytes, *planned.memory_lock_bytes);
        const auto& total = inventory_.settings.memory_total_bytes;
        if (total && planned.locked_bytes > *total)
            problems_.more_than_there_is(vm, planned.locked_bytes, *total);
    }

    const Inventory& inventory_;
    const Grants& grants_;
    const std::string_view only_vm_;
    PlanProblems problems_;
    Plan plan_;
    std::vector<Claim> claims_;
    std::vector<const Claim*> granted_to_;
    std::vector<std::optional<std::size_t>> vm_of_device_;
    std::map<DomainKey, std::vector<std::size_t>> domains_;
    std::map<std::pair<std::size_t, std::uint64_t>, Reach> whole_reaches_;
    Reach reach_;  ///< of the device at hand
};

}  // namespace

bool Plan::would_work() const {
    return std::ranges::none_of(problems, [](const Problem& problem) { return problem.is_fatal; });
}

Plan make_plan(const Inventory& inventory, const Grants& grants, std::string_view only_vm) {
    return Planner{inventory, grants, only_vm}.make();
}

}  // namespace guestmem::dma
