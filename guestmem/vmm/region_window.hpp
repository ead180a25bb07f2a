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
/// MiB, the lowest that is free first.
/// Contract: show() puts registers on the bus and data into the machine's memory, or changes nothing. hide() undoes
/// both.
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
    void hide(GuestAddress place);

private:
    [[nodiscard]] Result<std::uint64_t> take(std::uint64_t size_bytes);
    void give_back(std::uint64_t base);

    GuestRange window_;
    VmMemory& memory_;
    Bus& bus_;
    std::mutex mutex_;
    std::map<std::uint64_t, std::uint64_t> taken_;  ///< first to last, registers and data
};

}  // namespace guestmem::vmm
