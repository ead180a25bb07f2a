// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/kvm_slots.hpp"

#include <fmt/format.h>

#include <bit>
#include <string>
#include <string_view>
#include <utility>

#include "guestmem/mem/map_diff.hpp"

namespace guestmem {
namespace {

constexpr std::uint32_t number_mask = max_kvm_slots - 1;

Error region_error(const Region& region, Errc code, std::string_view why) {
    return Error{code, fmt::format("kvm slots: region '{}' ({:#x} to {:#x}): {}", region.name(),
                                   region.range().base().value(), region.range().last().value(), why)};
}

}  // namespace

Result<KvmSlots> KvmSlots::create(const KvmSlotsOptions& options) {
    if (options.max_slots == 0 || options.max_slots > max_kvm_slots)
        return Error{Errc::out_of_range, fmt::format("kvm slots: {} slots; a virtual machine has 1 to {}",
                                                     options.max_slots, max_kvm_slots)};
    if (!std::has_single_bit(options.page_bytes))
        return Error{Errc::invalid_argument,
                     fmt::format("kvm slots: the page size {} is not a power of two", options.page_bytes)};
    return KvmSlots{options};
}

bool KvmSlots::has_slot(const Region& region) const {
    return region.is_memory() && (region.is_writable() || options_.has_read_only);
}

Result<void> KvmSlots::check(const Region& region) const {
    const std::uint64_t page = options_.page_bytes;
    const GuestRange range = region.range();
    if (!range.base().is_aligned(page) || range.size_bytes() % page != 0)
        return region_error(region, Errc::invalid_argument,
                            fmt::format("it does not begin and end with pages of {} bytes", page));
    const auto host = reinterpret_cast<std::uintptr_t>(region.host_base());
    if (host % page != 0)
        return region_error(
            region, Errc::invalid_argument,
            fmt::format("its host address {:#x} is not a multiple of the page size {}", host, page));
    if (range.last() == GuestAddress::max())
        return region_error(region, Errc::out_of_range, "KVM takes no slot that ends at 2^64");
    if (range.size_bytes() / page > max_kvm_slot_pages)
        return region_error(region, Errc::out_of_range,
                            fmt::format("it has {} pages; a slot has at most {}: make several regions of it",
                                        range.size_bytes() / page, max_kvm_slot_pages));
    return {};
}

std::uint32_t KvmSlots::flags_of(const Region& region, KvmDirtyLogging logging) const {
    if (!region.is_writable()) return kvm_mem_readonly;
    const bool is_logged = logging == KvmDirtyLogging::of_all || region.dirty().is_on();
    return is_logged ? kvm_mem_log_dirty_pages : 0;
}

Result<KvmSlotPlan> KvmSlots::plan(const MemoryMap& map, KvmDirtyLogging logging) const {
    std::vector<std::shared_ptr<const Region>> before;
    for (const auto& [base, number] : by_address_) before.push_back(slots_[number].region);
    std::vector<std::shared_ptr<const Region>> after;
    for (const auto& region : map.regions())
        if (has_slot(*region)) after.push_back(region);
    if (after.size() > options_.max_slots)
        return Error{Errc::exhausted, fmt::format("kvm slots: the map needs {} slots, and KVM has {}",
                                                  after.size(), options_.max_slots)};
    const MapDiff diff = diff_regions(before, after);

    KvmSlotPlan plan;
    plan.version_ = version_;
    std::vector<bool> is_removed(slots_.size());
    for (const auto& region : diff.removed) {
        const std::uint32_t number = by_address_.at(region->range().base());
        KvmSlot slot = slots_[number].slot;
        slot.flags = 0;
        slot.memory_size = 0;
        plan.steps_.push_back({slot, nullptr});
        is_removed[number] = true;
    }
    for (const auto& region : after) {
        const auto at = by_address_.find(region->range().base());
        if (at == by_address_.end() || is_removed[at->second]) continue;
        const KvmSlotEntry& entry = slots_[at->second];
        KvmSlot slot = entry.slot;
        slot.flags = flags_of(*region, logging);
        if (slot != entry.slot) {
            plan.steps_.push_back({slot, region});
        } else if (region != entry.region) {
            plan.renamed_.push_back({slot, region});
        }
    }
    GM_TRY(plan_additions(plan, diff.added, is_removed, logging));
    return plan;
}

Result<void> KvmSlots::plan_additions(KvmSlotPlan& plan,
                                      const std::vector<std::shared_ptr<const Region>>& added,
                                      const std::vector<bool>& is_removed, KvmDirtyLogging logging) const {
    const auto is_free = [&](std::uint32_t number) {
        return number >= slots_.size() || slots_[number].region == nullptr || is_removed[number];
    };
    // There are as many free numbers as additions, since the map has at most max_slots regions.
    std::uint32_t number = 0;
    for (const auto& region : added) {
        GM_TRY(check(*region));
        while (!is_free(number)) ++number;
        const KvmSlot slot{
            .slot = std::uint32_t{options_.address_space} << 16 | number,
            .flags = flags_of(*region, logging),
            .guest_phys_addr = region->range().base().value(),
            .memory_size = region->range().size_bytes(),
            .userspace_addr = reinterpret_cast<std::uintptr_t>(region->host_base()),
        };
        plan.steps_.push_back({slot, region});
        ++number;
    }
    return {};
}

Result<void> KvmSlots::commit(const KvmSlotPlan& plan, std::size_t count_done) {
    if (plan.version_ != version_)
        return Error{Errc::busy,
                     "kvm slots: the slots have changed since this plan was made; make another plan"};
    if (count_done > plan.steps_.size())
        return Error{Errc::out_of_range,
                     fmt::format("kvm slots: {} steps are said to be done, of a plan of {}", count_done,
                                 plan.steps_.size())};
    for (std::size_t i = 0; i < count_done; ++i) apply(plan.steps_[i]);
    // What KVM need not be told is taken over when KVM has all of the map.
    const bool is_renaming = count_done == plan.steps_.size() && !plan.renamed_.empty();
    if (is_renaming)
        for (const KvmSlotEntry& entry : plan.renamed_) apply(entry);
    if (count_done != 0 || is_renaming) ++version_;
    return {};
}

void KvmSlots::apply(const KvmSlotEntry& step) {
    const std::uint32_t number = step.slot.slot & number_mask;
    if (number >= slots_.size()) slots_.resize(std::size_t{number} + 1);
    const GuestAddress base{step.slot.guest_phys_addr};
    if (step.region) {
        slots_[number] = step;
        by_address_[base] = number;
    } else {
        slots_[number] = {};
        by_address_.erase(base);
    }
}

std::vector<KvmSlotEntry> KvmSlots::entries() const {
    std::vector<KvmSlotEntry> entries;
    for (const KvmSlotEntry& entry : slots_)
        if (entry.region) entries.push_back(entry);
    return entries;
}

const KvmSlotEntry* KvmSlots::find(std::uint32_t slot) const {
    const std::uint32_t number = slot & number_mask;
    if (slot >> 16 != options_.address_space || number >= slots_.size() || !slots_[number].region)
        return nullptr;
    return &slots_[number];
}

}  // namespace guestmem
