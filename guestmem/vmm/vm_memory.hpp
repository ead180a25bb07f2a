// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/kvm_slots.hpp"
#include "guestmem/mem/live_map.hpp"
#include "guestmem/mem/memory_map.hpp"
#include "guestmem/sys/kvm.hpp"

/// The memory of one running machine: the map that devices read, and the slots that KVM shows to the guest, together.
///
/// Concepts: plugging memory is a map with one region more. Devices see it first, then the guest; memory that leaves
/// goes from the guest first, then from devices, and is unmapped when nobody uses it.
/// Contract: a change that KVM refuses is undone: map and slots are as before, and the error says what was refused.
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
                                                                  std::shared_ptr<const MemoryMap> map);

    [[nodiscard]] Result<void> insert(std::shared_ptr<const Region> region);
    [[nodiscard]] Result<void> remove(const GuestRange& range);

    [[nodiscard]] Result<MapReader> make_reader(std::string name) {
        return live_.make_reader(std::move(name));
    }
    [[nodiscard]] std::shared_ptr<const MemoryMap> map() const { return live_.current(); }
    [[nodiscard]] std::size_t count_slots() const;

private:
    VmMemory(std::shared_ptr<const KvmMachine> machine, KvmSlots slots, std::shared_ptr<const MemoryMap> map)
        : live_(std::move(map)), slots_(std::move(slots)), machine_(std::move(machine)) {}
    /// Makes the calls of the plan for `map`, as far as they go well.
    [[nodiscard]] Result<void> show(const MemoryMap& map);

    mutable std::mutex mutex_;
    // The machine goes first: no slot of it shows memory that is unmapped.
    LiveMap live_;
    KvmSlots slots_;
    std::shared_ptr<const KvmMachine> machine_;
};

}  // namespace guestmem::vmm
