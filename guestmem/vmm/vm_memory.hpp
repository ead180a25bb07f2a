// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/dirty_pages.hpp"
#include "guestmem/mem/kvm_slots.hpp"
#include "guestmem/mem/live_map.hpp"
#include "guestmem/mem/memory_map.hpp"
#include "guestmem/sys/kvm.hpp"
#include "guestmem/vmm/sandbox.hpp"

/// The memory of one running machine: the map that devices read, and the slots that KVM shows to the guest, together.
///
/// Concepts: plugging memory is a map with one region more. Devices see it first, then the guest; memory that leaves
/// goes from the guest first, then from devices, and is unmapped when nobody uses it. While the dirty log is on, what
/// the guest and what devices write is marked in the trackers of all RAM, of what is plugged later, too.
/// harvest_dirty() takes the marks; KVM has protected the pages again before it returns, so bytes that are read
/// afterwards are not older than their mark.
/// Contract: no child of the process has this memory, and no core file unless that is asked for. A change that KVM
/// refuses is undone: map and slots are as before, and the error says what was refused. A harvest that fails loses no
/// mark. Marks of a region that leaves go with it.
/// Threads: any; changes come one after another.
/// Lifetime: the machine goes before it: no slot shows memory that is unmapped.
/// Example:
///     const auto memory = GM_TRY(VmMemory::create(kvm, machine, map));
///     GM_TRY(memory->insert(share_region));

namespace guestmem::vmm {

class VmMemory {
public:
    [[nodiscard]] static Result<std::unique_ptr<VmMemory>> create(const KvmSystem& system,
                                                                  std::shared_ptr<const KvmMachine> machine,
                                                                  std::shared_ptr<const MemoryMap> map,
                                                                  MemoryDump dump = MemoryDump::left_out);

    [[nodiscard]] Result<void> insert(std::shared_ptr<const Region> region);
    [[nodiscard]] Result<void> remove(const GuestRange& range);

    /// An error when it is on already.
    [[nodiscard]] Result<void> start_dirty_log();
    /// What was not harvested is gone. An error when it is off.
    [[nodiscard]] Result<void> stop_dirty_log();
    [[nodiscard]] bool is_logging() const;
    struct DirtyRegion {
        std::shared_ptr<const Region> region;
        DirtyPages pages;
    };
    /// What was written since the last harvest, by region in the order of addresses; an error when the log is off.
    [[nodiscard]] Result<std::vector<DirtyRegion>> harvest_dirty();

    [[nodiscard]] Result<MapReader> make_reader(std::string name) {
        return live_.make_reader(std::move(name));
    }
    [[nodiscard]] std::shared_ptr<const MemoryMap> map() const { return live_.current(); }
    [[nodiscard]] std::size_t count_slots() const;
    /// In the order of their numbers.
    [[nodiscard]] std::vector<KvmSlotEntry> slots() const;

private:
    VmMemory(std::shared_ptr<const KvmMachine> machine, KvmSlots slots, std::shared_ptr<const MemoryMap> map,
             MemoryDump dump)
        : dump_(dump), live_(std::move(map)), slots_(std::move(slots)), machine_(std::move(machine)) {}
    /// Makes the calls of the plan for `map`, as far as they go well.
    [[nodiscard]] Result<void> show(const MemoryMap& map);
    /// KVM's bitmap of a slot, into the tracker of its region.
    [[nodiscard]] Result<void> fetch_dirty(const KvmSlotEntry& entry) const;

    mutable std::mutex mutex_;
    MemoryDump dump_;
    bool is_logging_ = false;
    // The machine goes first: no slot of it shows memory that is unmapped.
    LiveMap live_;
    KvmSlots slots_;
    std::shared_ptr<const KvmMachine> machine_;
};

}  // namespace guestmem::vmm
