// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/device/io_device.hpp"
#include "guestmem/mem/host_memory.hpp"
#include "guestmem/share/host_shm.hpp"

/// One connection of a guest to a region: its control page, and the client of the share behind it.
///
/// Concepts: registers as QNX's guests know them: status at 0, index at 4, notify at 8, detach at 12. The low half of
/// status says who notified this connection since the last look and is cleared by it, the high half who is active.
/// Contract: an interrupt is due from a change of status until the guest reads it. notify of 0xffff is everybody,
/// the writer included, of all ones everybody but the writer. Registers take 4 bytes at their offsets; other
/// accesses find ones and change nothing. After detach() all reads are ones.
/// Threads: any. `changed` is called without the client's mutex.
/// Cost: notify makes one system call for each receiver.

namespace guestmem::vmm {

class ShmemClient final : public IoDevice {
public:
    struct Events {
        std::function<void()> changed;  ///< whether an interrupt is due may have changed
        std::function<void()> leave;    ///< the guest wrote to detach
        std::function<void(const std::string&)> warn;
    };
    /// A client that is attached.
    ShmemClient(std::shared_ptr<share::HostShm> shm, Events events);

    /// The region's bytes, kept by whoever holds them.
    [[nodiscard]] Result<std::shared_ptr<const HostMemory>> memory() const;
    [[nodiscard]] const std::string& name() const { return name_; }
    [[nodiscard]] std::uint64_t size_pages() const { return size_pages_; }
    [[nodiscard]] bool is_interrupt_due() const;
    /// Readable when look() has something to find.
    [[nodiscard]] FdView view() const;
    /// Takes what the share has to tell; whether that was anything.
    bool look();
    /// Says good-bye to the others; the bytes stay while somebody holds them.
    void detach();

    void read(std::uint64_t offset, std::span<std::byte> data) override;
    void write(std::uint64_t offset, std::span<const std::byte> data) override;

private:
    [[nodiscard]] std::uint32_t read_status();
    void notify(std::uint32_t bits);
    void complain(const Error& error);
    /// With the mutex held; whether status changed.
    bool take_status();

    std::string name_;
    std::uint64_t size_pages_ = 0;
    std::uint32_t index_ = 0;
    Events events_;
    mutable std::mutex mutex_;
    std::shared_ptr<share::HostShm> shm_;  ///< null once it is detached
    std::uint32_t notified_ = 0;           ///< low half, not read yet
    std::uint32_t active_ = 0;             ///< high half
    bool is_due_ = false;
    bool has_complained_ = false;
};

}  // namespace guestmem::vmm
