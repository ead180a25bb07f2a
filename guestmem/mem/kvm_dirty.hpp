// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/dirty_tracker.hpp"

/// What a guest's processors wrote, as KVM tells it, into the dirty trackers of the regions behind its memory slots.
///
/// Concepts: KVM tells in one of two ways. The bitmap (KVM_GET_DIRTY_LOG): one bit for each page of a slot, bit
/// n % 64 of little-endian word n / 64, padded to 64 bits. The dirty ring (KVM_CAP_DIRTY_LOG_RING): for each
/// processor an array of kvm_dirty_gfn in shared memory, in which the kernel sets DIRTY and we set RESET. A slot is
/// the address space's number and the slot's number, as_id << 16 | slot_id, and its offsets count pages of the host
/// from the beginning of the slot. A KvmSlotPlace says where a slot lies in a region.
/// Contract: marks go into the log that the region's tracker has at that moment, whatever its page size. A tracker
/// that is off, a slot that does not fit into its region, or a bitmap that is too short for it, is an error, and
/// nothing is marked. Bits past the last page of the slot are ignored. An entry of a ring is read once and goes back
/// to the kernel only after it was marked; one whose slot nobody knows, whose page is not in its slot, or whose tracker
/// is off, marks nothing and is handed out as a stray with its reason. Entries are taken in order: from the first one
/// that is not DIRTY on, nothing is.
/// The kernel protects pages again in KVM_GET_DIRTY_LOG, or with KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 in
/// KVM_CLEAR_DIRTY_LOG, or for rings in KVM_RESET_DIRTY_RINGS: make that call BEFORE the pages are read, else writes
/// between the reading and the call are lost.
/// Threads: one at a time for each ring and bitmap; several rings may go into one tracker at the same time. A tracker
/// that is stopped meanwhile drops what is being merged, as it drops all that was not harvested.
/// Lifetime: a ring borrows its entries: the mapping of the processor's descriptor. A place borrows its tracker.
/// Limits: a ring has a power of two of entries, at most max_kvm_dirty_ring_entries; one harvest takes as many at most,
/// so strays are bounded, too. Little-endian hosts.
/// Example (guestmem/mem/kvm_dirty_test.cpp runs it on a real KVM):
///     KvmDirtyRing ring = GM_TRY(KvmDirtyRing::create(entries_of_vcpu));
///     const KvmRingHarvest taken = ring.harvest([&](std::uint32_t slot) { return places.find(slot); });
///     ...KVM_RESET_DIRTY_RINGS...
///     const DirtyPages pages = GM_TRY(tracker.harvest());

namespace guestmem {

inline constexpr std::uint32_t max_kvm_dirty_ring_entries = 65536;
inline constexpr std::uint32_t kvm_dirty_gfn_dirty = 1;
inline constexpr std::uint32_t kvm_dirty_gfn_reset = 2;

/// struct kvm_dirty_gfn of <linux/kvm.h>.
struct KvmDirtyGfn {
    std::uint32_t flags;
    std::uint32_t slot;
    std::uint64_t offset;
};
static_assert(sizeof(KvmDirtyGfn) == 16 && alignof(KvmDirtyGfn) == 8);
static_assert(offsetof(KvmDirtyGfn, flags) == 0);
static_assert(offsetof(KvmDirtyGfn, slot) == 4);
static_assert(offsetof(KvmDirtyGfn, offset) == 8);

/// The number of a slot in a ring's entry.
[[nodiscard]] constexpr std::uint32_t kvm_slot(std::uint16_t address_space, std::uint16_t slot) {
    return std::uint32_t{address_space} << 16 | slot;
}

/// Where a memory slot lies in the region that `tracker` belongs to (Region::dirty()), which has to be on.
struct KvmSlotPlace {
    DirtyTracker& tracker;
    std::uint64_t region_offset = 0;
    std::uint64_t slot_bytes = 0;
    std::uint64_t page_bytes = page_size_bytes;  ///< the host's
};

/// Marks the pages of a slot whose bits are set in what KVM_GET_DIRTY_LOG filled in.
[[nodiscard]] Result<void> merge_kvm_bitmap(std::span<const std::uint64_t> words, const KvmSlotPlace& place);

enum class KvmStrayReason : std::uint8_t { unknown_slot, outside_of_slot, tracking_is_off };

/// An entry that was not marked: something was written, and either we cannot say what, or nobody has asked.
struct KvmStray {
    std::uint32_t slot = 0;
    std::uint64_t page = 0;
    KvmStrayReason reason = KvmStrayReason::unknown_slot;
    friend constexpr bool operator==(const KvmStray&, const KvmStray&) = default;
};

struct KvmRingHarvest {
    std::uint64_t count_marked = 0;
    std::vector<KvmStray> strays;
};

class KvmDirtyRing {
public:
    /// The entries of one processor. `next` is where an earlier KvmDirtyRing of the same entries stopped.
    [[nodiscard]] static Result<KvmDirtyRing> create(std::span<KvmDirtyGfn> entries, std::uint32_t next = 0);

    /// Takes all entries that are DIRTY. `find` gets the number of a slot and returns std::optional<KvmSlotPlace>.
    template <typename Find>
    [[nodiscard]] KvmRingHarvest harvest(Find&& find) {
        KvmRingHarvest taken;
        for (std::size_t turn = 0; turn < entries_.size(); ++turn) {
            KvmDirtyGfn& entry = entries_[next_ % entries_.size()];
            const std::atomic_ref flags{entry.flags};
            // Pairs with the kernel's release of DIRTY: slot and offset are there.
            if ((flags.load(std::memory_order_acquire) & kvm_dirty_gfn_mask) != kvm_dirty_gfn_dirty) break;
            const std::uint32_t slot = std::atomic_ref{entry.slot}.load(std::memory_order_relaxed);
            const std::uint64_t page = std::atomic_ref{entry.offset}.load(std::memory_order_relaxed);
            const std::optional<KvmSlotPlace> place = find(slot);
            if (const auto reason = place ? mark_page(*place, page) : KvmStrayReason::unknown_slot)
                taken.strays.push_back({slot, page, *reason});
            else
                ++taken.count_marked;
            // Pairs with the kernel's acquire: it may write the entry anew once it sees RESET.
            flags.store(kvm_dirty_gfn_reset, std::memory_order_release);
            ++next_;
        }
        return taken;
    }

    /// The entry that comes next, counted without end (modulo 2^32).
    [[nodiscard]] std::uint32_t next() const { return next_; }

private:
    static constexpr std::uint32_t kvm_dirty_gfn_mask = kvm_dirty_gfn_dirty | kvm_dirty_gfn_reset;

    KvmDirtyRing(std::span<KvmDirtyGfn> entries, std::uint32_t next) : entries_(entries), next_(next) {}
    /// Why the page was not marked; nothing when it was.
    static std::optional<KvmStrayReason> mark_page(const KvmSlotPlace& place, std::uint64_t page);

    std::span<KvmDirtyGfn> entries_;
    std::uint32_t next_;
};

}  // namespace guestmem
