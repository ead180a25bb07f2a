// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "guestmem/device/io_device.hpp"
#include "guestmem/device/pci/capability.hpp"
#include "guestmem/device/pci/message_vector.hpp"
#include "guestmem/device/pci/report.hpp"

/// The MSI-X capability, and its table and pending bits as what a BAR shows.
///
/// Concepts: a vector is an eventfd given from outside: a peer's doorbell becomes the guest's message, and nobody of
/// ours runs in between. The layout is that of PCI 3.0, 6.8.2; the table is at offset 0 of its BAR, the pending bits
/// follow at table_size or 2048, whichever is more.
/// Contract: give() and take_back() at any time, while the guest runs. While MSI-X is off, or the function or a vector
/// is masked, kicks wait in their eventfds; the pending bits show them, and they are delivered as one. The table takes
/// aligned 4 and 8 byte writes, as 6.8.2 demands of software; others have no effect, and no write to the pending bits
/// has. Messages do not depend on the bus master bit, since guests' ivshmem drivers do not all set it.
/// Threads: any. Lifetime: eventfds outlive their stay.
/// Cost: a write to the table tells the machine only what it changes; a read of pending bits asks the kernel about each
/// of the vectors that it covers.
/// Example:
///     auto msix = GM_TRY(Msix::create({.count_vectors = 16, .bar_index = 1, .connector = machine}));
///     GM_TRY(msix->give(3, peer_bell.view()));

namespace guestmem::pci {

class Msix final : public Capability, public IoDevice {
public:
    static constexpr std::size_t max_vectors = 2048;  ///< 6.8.2.3: 11 bits
    static constexpr std::uint8_t capability_id = 0x11;

    struct Options {
        std::size_t count_vectors = 1;
        unsigned bar_index = 1;
        std::shared_ptr<MsiConnector> connector = {};
        Report report = {};  ///< the first message that the machine refuses
    };
    [[nodiscard]] static Result<std::shared_ptr<Msix>> create(Options options);

    [[nodiscard]] Result<void> give(std::size_t vector, FdView eventfd);
    void take_back(std::size_t vector);
    [[nodiscard]] std::size_t count_vectors() const { return entries_.size(); }
    [[nodiscard]] bool is_enabled() const { return is_enabled_; }

    [[nodiscard]] unsigned bar_index() const { return bar_index_; }
    /// What the BAR has to have: a power of two, 4 KiB at least.
    [[nodiscard]] std::uint64_t bar_size_bytes() const;
    [[nodiscard]] std::uint64_t pending_offset() const;

    [[nodiscard]] CapabilityImage image() const override;
    void programmed(std::span<const std::byte> bytes) override;
    [[nodiscard]] bool replaces_intx() const override { return is_enabled_; }

    void read(std::uint64_t offset, std::span<std::byte> data) override;
    void write(std::uint64_t offset, std::span<const std::byte> data) override;

private:
    static constexpr std::size_t entry_bytes = 16;
    struct Entry {
        /// Address, data and vector control as the guest wrote them; born masked (6.8.2.9).
        std::array<std::uint32_t, 4> words{0, 0, 0, 1};
        MessageVector vector;
    };

    explicit Msix(Options options);
    [[nodiscard]] Result<void> check(std::size_t vector) const;
    [[nodiscard]] std::optional<MsiMessage> message_of(const Entry& entry) const;
    void apply(Entry& entry);
    [[nodiscard]] std::byte byte_at(std::uint64_t offset) const;

    std::shared_ptr<MsiConnector> connector_;
    unsigned bar_index_;
    ReportOnce report_;
    std::atomic<bool> is_enabled_{false};
    mutable std::mutex mutex_;
    bool is_function_masked_ = false;
    std::vector<Entry> entries_;
};

}  // namespace guestmem::pci
