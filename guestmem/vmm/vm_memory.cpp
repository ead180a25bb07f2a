// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/vm_memory.hpp"

#include <fmt/format.h>

#include <utility>

#include "guestmem/mem/kvm_dirty.hpp"
#include "guestmem/mem/layout.hpp"

namespace guestmem::vmm {
namespace {

constexpr std::uint32_t capability_read_only = 81;  // KVM_CAP_READONLY_MEM

/// Regions whose trackers were started together: stopped again unless all went well.
class StartedTrackers {
public:
    StartedTrackers() = default;
    StartedTrackers(const StartedTrackers&) = delete;
    StartedTrackers& operator=(const StartedTrackers&) = delete;
    ~StartedTrackers() {
        for (const auto& region : started_) static_cast<void>(region->dirty().stop().has_value());
    }

    [[nodiscard]] Result<void> start(const std::shared_ptr<const Region>& region) {
        if (!region->is_writable() || region->dirty().is_on()) return {};
        GM_TRY_CONTEXT(region->dirty().start(), fmt::format("dirty log of '{}'", region->name()));
        started_.push_back(region);
        return {};
    }
    void keep() { started_.clear(); }

private:
    std::vector<std::shared_ptr<const Region>> started_;
};

Result<void> keep_private(const Region& region, MemoryDump dump) {
    if (!region.is_memory()) return {};
    GM_TRY_CONTEXT(keep_to_ourselves(region.memory()->bytes(), dump), region.name());
    return {};
}

}  // namespace

Result<std::unique_ptr<VmMemory>> VmMemory::create(const KvmSystem& system,
                                                   std::shared_ptr<const KvmMachine> machine,
                                                   std::shared_ptr<const MemoryMap> map, MemoryDump dump) {
    for (const auto& region : map->regions()) GM_TRY(keep_private(*region, dump));
    KvmSlots slots = GM_TRY(KvmSlots::create(
        {.max_slots = system.max_slots(), .has_read_only = system.capability(capability_read_only) != 0}));
    std::unique_ptr<VmMemory> memory{new VmMemory{std::move(machine), std::move(slots), map, dump}};
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
    GM_TRY(keep_private(*region, dump_));
    const std::lock_guard lock{mutex_};
    const auto before = live_.current();
    const GuestRange range = region->range();
    StartedTrackers trackers;
    if (is_logging_) GM_TRY(trackers.start(region));
    GM_TRY(live_.insert(std::move(region)));
    if (auto shown = show(*live_.current()); !shown) {
        GM_TRY(show(*before));
        GM_TRY(live_.remove(range));
        return shown;
    }
    trackers.keep();
    return {};
}

Result<void> VmMemory::remove(const GuestRange& range) {
    const std::lock_guard lock{mutex_};
    const auto before = live_.current();
    Layout rest;
    std::shared_ptr<const Region> found;
    for (const auto& region : before->regions()) {
        if (region->range() == range) {
            found = region;
        } else {
            rest.add(region);
        }
    }
    if (found == nullptr) {
        return Error{Errc::not_found, fmt::format("no region of {} bytes begins at {:#x}", range.size_bytes(),
                                                  range.base().value())};
    }
    const auto after = GM_TRY(std::move(rest).freeze());
    if (auto shown = show(*after); !shown) {
        GM_TRY(show(*before));
        return shown;
    }
    live_.publish(after);
    if (is_logging_ && found->dirty().is_on()) GM_TRY(found->dirty().stop());
    return {};
}

Result<void> VmMemory::start_dirty_log() {
    const std::lock_guard lock{mutex_};
    if (is_logging_) return Error{Errc::already_exists, "the dirty log is on already"};
    const auto map = live_.current();
    Result<void> shown;
    {
        StartedTrackers trackers;
        for (const auto& region : map->regions()) GM_TRY(trackers.start(region));
        shown = show(*map);
        if (shown) {
            trackers.keep();
            is_logging_ = true;
            return {};
        }
    }
    GM_TRY(show(*map));
    return shown;
}

Result<void> VmMemory::stop_dirty_log() {
    const std::lock_guard lock{mutex_};
    if (!is_logging_) return Error{Errc::not_found, "the dirty log is off"};
    is_logging_ = false;
    const auto map = live_.current();
    for (const auto& region : map->regions()) {
        if (region->dirty().is_on()) GM_TRY(region->dirty().stop());
    }
    return show(*map);
}

bool VmMemory::is_logging() const {
    const std::lock_guard lock{mutex_};
    return is_logging_;
}

Result<void> VmMemory::fetch_dirty(const KvmSlotEntry& entry) const {
    const std::uint64_t count_pages = entry.slot.memory_size / page_size_bytes;
    std::vector<std::uint64_t> words((count_pages + 63) / 64);
    GM_TRY_CONTEXT(machine_->get_dirty_log(entry.slot.slot, words),
                   fmt::format("dirty log of '{}'", entry.region->name()));
    const KvmSlotPlace place{.tracker = entry.region->dirty(), .slot_bytes = entry.slot.memory_size};
    return merge_kvm_bitmap(words, place);
}

Result<std::vector<VmMemory::DirtyRegion>> VmMemory::harvest_dirty() {
    const std::lock_guard lock{mutex_};
    if (!is_logging_) return Error{Errc::not_found, "the dirty log is off; switch it on first"};
    for (const KvmSlotEntry& entry : slots_.entries()) {
        if ((entry.slot.flags & kvm_mem_log_dirty_pages) != 0) GM_TRY(fetch_dirty(entry));
    }
    std::vector<DirtyRegion> taken;
    const auto map = live_.current();
    for (const auto& region : map->regions()) {
        if (!region->dirty().is_on()) continue;
        auto pages = region->dirty().harvest();
        if (!pages) {
            for (const DirtyRegion& one : taken) {
                one.pages.for_each_run(
                    [&](DirtyRun run) { one.region->dirty().mark_written(run.offset, run.size_bytes); });
            }
            return pages.error();
        }
        taken.push_back({region, *std::move(pages)});
    }
    return taken;
}

std::vector<KvmSlotEntry> VmMemory::slots() const {
    const std::lock_guard lock{mutex_};
    return slots_.entries();
}

std::size_t VmMemory::count_slots() const {
    const std::lock_guard lock{mutex_};
    return slots_.count();
}

}  // namespace guestmem::vmm
