// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/device/interrupt.hpp"
#include "guestmem/device/io_device.hpp"
#include "guestmem/device/pci/function.hpp"
#include "guestmem/device/pci/msix.hpp"
#include "guestmem/share/session.hpp"
#include "guestmem/sys/kvm.hpp"
#include "guestmem/vmm/devices/watched_share.hpp"
#include "guestmem/vmm/vm_memory.hpp"

/// `vdev ivshmem`: the ivshmem device of revision 1, plain or with doorbells, on a share of the service.
///
/// Concepts: BAR0 has four registers, BAR1 the MSI-X table, BAR2 the memory. The guest's write to the doorbell
/// register is an eventfd of the peer (KVM's ioeventfd), and a peer's kick is an eventfd that is our message
/// (irqfd): no thread of ours runs in between. A doorbell gets to the kernel by its first use at a place of BAR0, which
/// is an exit: what is not used costs nothing when BAR0 moves.
/// Contract: registers, ids and sizes as QEMU's ivshmem-plain and ivshmem-doorbell have them: 1af4:1110, revision
/// 1, class 0500; IVPosition at 8 says the own id, 0 for a plain one; the doorbell at 12 takes the peer's id in the
/// high half and the vector in the low half, and ignores what nobody has. The masks at 0 and 4 are storage. The
/// share's rights hold: one that may only read has a BAR2 that the guest cannot write. Peers that come and go while the
/// guest runs (classic ids) are known once look() has read of them. A service that is gone has taken nothing from the
/// guest: memory and doorbells go on among those that were there, which is said; nothing of another share takes its
/// place. Memory that the kernel does not let go of keeps its address, and each later move tries again.
/// A doorbell that does not go through the kernel is rung without waiting, whatever its receiver did to it.
/// Threads: any.
/// Limits: max_kernel_doorbells pairs of peer and vector go through the kernel, the others through the processor's
/// exit. A device with doorbells takes one of the host's fs.aio-max-nr.
/// Cost: the kernel takes a doorbell or gives it back in 5 to 15 us, more while guests run. Each change
/// of who is there takes all of them back.
/// Lifetime: leave() comes before machine and memory go.
/// Known holes: on a host whose kernel has no CONFIG_AIO, a receiver that makes its doorbell blocking and fills it just
/// between a look and a write holds the processor that rings it, and who waits for this device's mutex.

namespace guestmem::vmm {

class IvshmemDevice final : public IoDevice, public WatchedShare {
public:
    static constexpr std::size_t max_kernel_doorbells = 512;
    static constexpr std::uint64_t register_bytes = 256;

    struct Options {
        share::SessionOptions session;
        bool has_doorbell = true;
        std::shared_ptr<MsiConnector> connector;
        std::shared_ptr<const KvmMachine> machine;
        VmMemory* memory = nullptr;
        std::function<void(const std::string&)> warn;
    };
    [[nodiscard]] static Result<std::shared_ptr<IvshmemDevice>> create(Options options);

    /// What goes onto the bus; it holds the device.
    [[nodiscard]] static Result<std::shared_ptr<pci::Function>> make_function(
        const std::shared_ptr<IvshmemDevice>& device);
    [[nodiscard]] const share::Session& session() const { return session_; }
    /// Out of the share, the guest's addresses and the kernel.
    void leave();

    [[nodiscard]] FdView view() const override;
    bool look() override;
    /// The peer's doorbells that the guest rings without an exit.
    [[nodiscard]] std::size_t count_kernel_doorbells() const;

    void read(std::uint64_t offset, std::span<std::byte> data) override;
    void write(std::uint64_t offset, std::span<const std::byte> data) override;

private:
    IvshmemDevice(Options options, share::Session session, std::shared_ptr<const HostMemory> data)
        : options_(std::move(options)), session_(std::move(session)), data_(std::move(data)) {}
    [[nodiscard]] Result<void> move_registers(std::optional<std::uint64_t> address);
    [[nodiscard]] Result<void> move_memory(std::optional<std::uint64_t> address);
    void ring(std::uint32_t value);
    // With the mutex held.
    void connect_doorbell(std::uint32_t value);
    void disconnect_doorbells();
    void complain(const Error& error);

    Options options_;
    share::Session session_;
    std::shared_ptr<const HostMemory> data_;
    std::shared_ptr<pci::Msix> msix_;
    mutable std::mutex mutex_;  ///< of all below, and of what the session learns
    std::array<std::uint32_t, 2> masks_{};
    std::optional<std::uint64_t> registers_at_;
    std::map<std::uint32_t, FdView> connected_;  ///< by value: doorbells in the kernel
    bool has_room_ = true;                       ///< the kernel has refused none at this place
    bool is_over_ = false;                       ///< the service is gone
    std::optional<GuestRange> memory_at_;
    bool has_complained_ = false;
};

}  // namespace guestmem::vmm
