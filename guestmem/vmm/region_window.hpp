// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/device/bus.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/mem/range.hpp"
#include "guestmem/vmm/vm_memory.hpp"

/// The guest addresses in which regions of `vdev shmem` appear: a page of registers, and the data behind it.
///
/// Concepts: a place is taken when a guest attaches and free again when it detaches. Places begin at multiples of 2
/// MiB, the lowest first at which neither the bus nor the machine's memory has anything.
/// Contract: show() puts registers on the bus and data into the machine's memory, and keeps the whole of it on the bus,
/// or changes nothing. hide() undoes all of that, withdraw() what the data is. Data that the kernel does not let go of
/// is an error; its place stays taken, and each later show() or hide() tries again.
/// Threads: any; the guest's processors are among them.
/// Limits: the window's size.
/// Cost: a memory slot of KVM each way.

namespace guestmem::vmm {

class RegionWindow {
public:
    static constexpr std::uint64_t alignment = 2UL << 20;

    RegionWindow(GuestRange window, VmMemory& memory, Bus& bus)
        : window_(window), memory_(memory), bus_(bus) {}

    /// The address of the registers' page.
    [[nodiscard]] Result<GuestAddress> show(const std::string& name, std::shared_ptr<IoDevice> registers,
                                            std::shared_ptr<const HostMemory> data);
    /// The registers are gone in any case. A place that nobody has is nothing to hide.
    [[nodiscard]] Result<void> hide(GuestAddress place);
    /// The data leaves, the registers stay until hide().
    [[nodiscard]] Result<void> withdraw(GuestAddress place);

private:
    struct Taken {
        std::uint64_t last = 0;  ///< of registers and data
        bool has_data = true;
        bool is_leaving = false;
    };
    // All with the mutex held.
    [[nodiscard]] Result<std::uint64_t> find_room(std::uint64_t size_bytes) const;
    [[nodiscard]] Result<void> put(std::uint64_t base, const std::string& name,
                                   std::shared_ptr<IoDevice> registers,
                                   std::shared_ptr<const HostMemory> data);
    [[nodiscard]] Result<void> remove_data(std::uint64_t base, Taken& taken);
    void finish_leaving();

    GuestRange window_;
    VmMemory& memory_;
    Bus& bus_;
    std::mutex mutex_;
    std::map<std::uint64_t, Taken> taken_;  ///< by the registers' address
};

}  // namespace guestmem::vmm
