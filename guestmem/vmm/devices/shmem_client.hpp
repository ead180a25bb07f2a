// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/device/io_device.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/share/host_shm.hpp"
#include "guestmem/vmm/devices/watched_share.hpp"

/// One connection of a guest to a region: its control page, and the client of the share behind it.
///
/// Concepts: registers as QNX's guests know them: status at 0, index at 4, notify at 8, detach at 12. The low half of
/// status says who notified this connection since the last look and is cleared by it, the high half who is active.
/// Contract: an interrupt is due from a change of status until the guest reads it. notify of 0xffff is everybody,
/// the writer included, of all ones everybody but the writer. Registers take 4 bytes at their offsets; other
/// accesses find ones and change nothing. After detach() all reads are ones.
/// A service that was started again and has lost the memory, or has given this client another index, has ended the
/// connection: `ended` is called once, and the guest finds a change of status: nobody is active any more, itself
/// included. Its index stays what it was, notify reaches nobody, and detach is what is left to do. Nothing of what came
/// in the place of the old region is ever seen through this client.
/// What the bell brings to the guest as an interrupt, no thread of ours has seen before the guest reads its status.
/// Others see the client leave at detach(), or when the last one has let go of the bytes: who holds them longer than
/// that is said.
/// Threads: any. The events are called without the client's mutex.
/// Cost: notify makes two system calls for each receiver.
/// Known holes: a receiver that makes its own doorbell blocking and fills it just between the look and the write holds
/// the processor that notifies it, for as long as it likes (Session; O_NONBLOCK is no help, the receiver may clear it),
/// and the processors that use the same connection then; the thread that waits for shares goes on.
/// A machine that cannot be paused or ended for that ends with its process (MachineWorld::stuck). A lost service that
/// takes connections and never answers holds whoever looks for it, for ShmemDevice::attach_timeout_ms at a time.

namespace guestmem::vmm {

class ShmemClient final : public IoDevice, public WatchedShare {
public:
    struct Events {
        std::function<void()> changed;  ///< whether an interrupt is due may have changed
        std::function<void()> leave;    ///< the guest wrote to detach
        std::function<void()> ended;    ///< the region is no more: its bytes lead nowhere
        std::function<void()> moved;    ///< bell() is another one
        std::function<void(const std::string&)> warn;
    };
    /// A client that is attached.
    ShmemClient(std::shared_ptr<share::HostShm> shm, Events events);

    /// The region's bytes, kept by whoever holds them.
    [[nodiscard]] Result<std::shared_ptr<const HostMemory>> memory() const;
    [[nodiscard]] const std::string& name() const { return name_; }
    [[nodiscard]] std::uint64_t size_pages() const { return size_pages_; }
    [[nodiscard]] bool is_interrupt_due() const { return is_due_; }
    /// Readable when look() has something to find.
    [[nodiscard]] FdView view() const override;
    /// Takes what the share has to tell; whether that was anything. While another thread is in the client nothing is
    /// taken: who waits for many shares waits for no guest that notifies a hostile receiver.
    bool look() override;
    [[nodiscard]] bool has_ended() const { return has_ended_; }
    /// Whether bell() has become another one since the beginning.
    [[nodiscard]] bool has_ever_moved() const { return has_ever_moved_; }
    /// Another descriptor of where kicks of this client arrive, for an interrupt that no thread of ours is to bring.
    [[nodiscard]] Result<Fd> bell() const;
    /// Says good-bye to the others; the bytes stay while somebody holds them.
    void detach();

    void read(std::uint64_t offset, std::span<std::byte> data) override;
    void write(std::uint64_t offset, std::span<const std::byte> data) override;

private:
    [[nodiscard]] std::uint32_t read_status();
    void notify(std::uint32_t bits);
    void complain(const Error& error);
    enum class Look : std::uint8_t { nothing, changed, ended };
    /// With the mutex held.
    [[nodiscard]] Look take_status();
    void tell(Look found);

    std::string name_;
    std::uint64_t size_pages_ = 0;
    std::uint32_t index_ = 0;
    Events events_;
    mutable std::mutex mutex_;
    std::shared_ptr<share::HostShm> shm_;  ///< null once it is detached
    std::uint32_t notified_ = 0;           ///< low half, not read yet
    std::uint32_t active_ = 0;             ///< high half
    std::uint64_t generation_ = 0;         ///< of the session, when its bell was told last
    // Written with the mutex held; whoever asks for them waits for nobody.
    std::atomic<bool> is_due_{false};
    std::atomic<bool> has_ended_{false};
    std::atomic<bool> has_ever_moved_{false};
    std::atomic<int> view_{-1};
    bool has_moved_ = false;  ///< not told yet
    bool has_complained_ = false;
};

}  // namespace guestmem::vmm
