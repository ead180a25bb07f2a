// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/vm_memory.hpp"

#include <fmt/format.h>

#include <utility>

#include "guestmem/mem/layout.hpp"

namespace guestmem::vmm {
namespace {

constexpr std::uint32_t capability_read_only = 81;  // KVM_CAP_READONLY_MEM

}  // namespace

Result<std::unique_ptr<VmMemory>> VmMemory::create(const KvmSystem& system,
                                                   std::shared_ptr<const KvmMachine> machine,
                                                   std::shared_ptr<const MemoryMap> map) {
    KvmSlots slots = GM_TRY(KvmSlots::create(
        {.max_slots = system.max_slots(), .has_read_only = system.capability(capability_read_only) != 0}));
    std::unique_ptr<VmMemory> memory{new VmMemory{std::move(machine), std::move(slots), map}};
    const std::lock_guard lock{memory->mutex_};
    GM_TRY(memory->show(*map));
    return memory;
}

Result<void> VmMemory::show(const MemoryMap& map) {
    const KvmSlotPlan plan = GM_TRY(slots_.plan(map));
    std::size_t count_done = 0;
    Result<void> status;
    for (const KvmSlotEntry& step : plan.steps()) {
        status = machine_->set_slot({.slot = step.slot.slot,
                                     .flags = step.slot.flags,
                                     .guest_address = step.slot.guest_phys_addr,
                                     .size_bytes = step.slot.memory_size,
                                     .host_address = step.slot.userspace_addr});
        if (!status) break;
        ++count_done;
    }
    GM_TRY(slots_.commit(plan, count_done));
    return status;
}

Result<void> VmMemory::insert(std::shared_ptr<const Region> region) {
    const std::lock_guard lock{mutex_};
    const auto before = live_.current();
    const GuestRange range = region->range();
    GM_TRY(live_.insert(std::move(region)));
    if (auto shown = show(*live_.current()); !shown) {
        GM_TRY(show(*before));
        GM_TRY(live_.remove(range));
        return shown;
    }
    return {};
}

Result<void> VmMemory::remove(const GuestRange& range) {
    const std::lock_guard lock{mutex_};
    const auto before = live_.current();
    Layout rest;
    bool is_found = false;
    for (const auto& region : before->regions()) {
        if (region->range() == range) {
            is_found = true;
        } else {
            rest.add(region);
        }
    }
    if (!is_found) {
        return Error{Errc::not_found, fmt::format("no region of {} bytes begins at {:#x}", range.size_bytes(),
                                                  range.base().value())};
    }
    const auto after = GM_TRY(std::move(rest).freeze());
    if (auto shown = show(*after); !shown) {
        GM_TRY(show(*before));
        return shown;
    }
    live_.publish(after);
    return {};
}

std::size_t VmMemory::count_slots() const {
    const std::lock_guard lock{mutex_};
    return slots_.count();
}

}  // namespace guestmem::vmm
