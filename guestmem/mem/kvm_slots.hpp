// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/memory_map.hpp"
#include "guestmem/mem/region.hpp"

/// The memory slots of a KVM virtual machine: what to tell KVM so that the guest sees a map.
///
/// Concepts: a KvmSlots knows which slots KVM has. plan() compares them with a map and gives the calls of
/// KVM_SET_USER_MEMORY_REGION that lead there, in the order in which KVM takes them: removals, then changes of flags,
/// then additions (map_diff.hpp says what is changed, and why). Whoever makes the calls says by commit() how many of
/// them went well; nothing else changes the state. So a call that fails half way leaves a KvmSlots that knows what
/// KVM has: plan() of the map before leads back, plan() of the same map goes on. Where another region shows the same
/// bytes at the same place, KVM need not be told: it stands in the slot once all steps of the plan are done.
/// Contract: RAM has a slot, logged when its region's tracker is on or when the caller wants all logged. Read-only
/// memory and ROM have a slot with KVM_MEM_READONLY: a guest's write is an MMIO exit. Devices have none. A region
/// keeps its slot's number for as long as it has the slot; an addition takes the lowest free number.
/// Errors: a region, or its host memory, that does not begin and end with pages; one that ends at 2^64 - 1 or has
/// more than max_kvm_slot_pages, which KVM refuses; a map that needs more slots than there are; a plan that is older
/// than the last commit that changed anything, be it a commit of its own. None of them changes the state.
/// Threads: one at a time.
/// Lifetime: it holds the region of each slot that KVM has, so no memory is unmapped under a slot. It makes no system
/// call: destroy it after the virtual machine.
/// Limits: max_slots slots, which KVM_CAP_NR_MEMSLOTS tells (32764 on x86-64).
/// Cost: plan and commit O(n log n); find() is one load.
/// Example (guestmem/mem/kvm_slots_test.cpp runs it on a real KVM):
///     const KvmSlotPlan plan = GM_TRY(slots.plan(*map));
///     std::size_t count_done = 0;
///     for (const KvmSlotEntry& step : plan.steps()) {
///         if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &step.slot) != 0) break;
///         ++count_done;
///     }
///     GM_TRY(slots.commit(plan, count_done));
/// Known holes: KVM forgets the dirty bitmap of a slot that is removed, and of one whose KVM_MEM_LOG_DIRTY_PAGES is
/// cleared. plan() clears it when the tracker of the region was stopped, and when another region of the same bytes,
/// whose tracker is off, takes its place. What KVM logged and nobody has harvested is gone then: get the log and merge
/// it before the tracker is stopped and before the steps are made (kvm_slots_test.cpp shows the loss).
/// KVM_SET_USER_MEMORY_REGION2 and guest_memfd are not covered. Neighbors are not merged into one slot.

namespace guestmem {

inline constexpr std::uint32_t kvm_mem_log_dirty_pages = 1;
inline constexpr std::uint32_t kvm_mem_readonly = 2;

/// KVM_MEM_MAX_NR_PAGES of virt/kvm/kvm_main.c.
inline constexpr std::uint64_t max_kvm_slot_pages = (std::uint64_t{1} << 31) - 1;

/// The low 16 bits of a slot's number; the high ones are the address space.
inline constexpr std::uint32_t max_kvm_slots = 65536;

/// struct kvm_userspace_memory_region of <linux/kvm.h>. A memory_size of 0 removes the slot.
struct KvmSlot {
    std::uint32_t slot = 0;
    std::uint32_t flags = 0;
    std::uint64_t guest_phys_addr = 0;
    std::uint64_t memory_size = 0;
    std::uint64_t userspace_addr = 0;
    friend bool operator==(const KvmSlot&, const KvmSlot&) = default;
};
static_assert(sizeof(KvmSlot) == 32 && alignof(KvmSlot) == 8);
static_assert(offsetof(KvmSlot, slot) == 0);
static_assert(offsetof(KvmSlot, flags) == 4);
static_assert(offsetof(KvmSlot, guest_phys_addr) == 8);
static_assert(offsetof(KvmSlot, memory_size) == 16);
static_assert(offsetof(KvmSlot, userspace_addr) == 24);

/// A slot, and the region that it shows; a step that removes a slot has no region.
struct KvmSlotEntry {
    KvmSlot slot;
    std::shared_ptr<const Region> region;
};

struct KvmSlotsOptions {
    std::uint32_t max_slots = 0;      ///< what KVM_CHECK_EXTENSION says of KVM_CAP_NR_MEMSLOTS
    bool has_read_only = true;        ///< KVM_CAP_READONLY_MEM; without it, read-only memory has no slot
    std::uint16_t address_space = 0;  ///< 1: what x86 shows in system management mode
    std::uint64_t page_bytes = page_size_bytes;  ///< the host's
};

enum class KvmDirtyLogging : std::uint8_t {
    of_tracked,  ///< RAM whose region's tracker is on
    of_all,      ///< all RAM
};

/// The calls that lead from the slots that KVM has to those of a map.
class KvmSlotPlan {
public:
    [[nodiscard]] const std::vector<KvmSlotEntry>& steps() const { return steps_; }

private:
    friend class KvmSlots;

    std::uint64_t version_ = 0;  ///< of the state that it was made for
    std::vector<KvmSlotEntry> steps_;
    std::vector<KvmSlotEntry> renamed_;  ///< another region object in a slot that KVM need not be told about
};

class KvmSlots {
public:
    [[nodiscard]] static Result<KvmSlots> create(const KvmSlotsOptions& options);

    [[nodiscard]] Result<KvmSlotPlan> plan(const MemoryMap& map,
                                           KvmDirtyLogging logging = KvmDirtyLogging::of_tracked) const;
    /// The first `count_done` steps of the plan are done. A plan without steps is committed, too: it may bring other
    /// region objects for the same slots. They are taken over when all steps are done.
    [[nodiscard]] Result<void> commit(const KvmSlotPlan& plan, std::size_t count_done);

    /// The slots that KVM has, in the order of their numbers.
    [[nodiscard]] std::vector<KvmSlotEntry> entries() const;
    [[nodiscard]] std::size_t count() const { return by_address_.size(); }
    /// The slot with that number, as KVM's dirty ring names it; null when KVM has none. Valid until the next commit.
    [[nodiscard]] const KvmSlotEntry* find(std::uint32_t slot) const;

private:
    explicit KvmSlots(const KvmSlotsOptions& options) : options_(options) {}
    [[nodiscard]] bool has_slot(const Region& region) const;
    [[nodiscard]] Result<void> check(const Region& region) const;
    [[nodiscard]] std::uint32_t flags_of(const Region& region, KvmDirtyLogging logging) const;
    [[nodiscard]] Result<void> plan_additions(KvmSlotPlan& plan,
                                              const std::vector<std::shared_ptr<const Region>>& added,
                                              const std::vector<bool>& is_removed,
                                              KvmDirtyLogging logging) const;
    void apply(const KvmSlotEntry& step);

    KvmSlotsOptions options_;
    std::uint64_t version_ = 0;
    std::vector<KvmSlotEntry> slots_;  ///< by the low bits of their numbers; free ones have no region
    std::map<GuestAddress, std::uint32_t> by_address_;
};

}  // namespace guestmem
