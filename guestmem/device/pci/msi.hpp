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

#include "guestmem/device/pci/capability.hpp"
#include "guestmem/device/pci/message_vector.hpp"
#include "guestmem/device/pci/report.hpp"

/// The MSI capability: 1 to 32 messages, with 64-bit addresses and a mask bit for each.
///
/// Concepts: a vector is an eventfd given from outside; whoever writes it sends the message. The layout is that of PCI
/// 3.0, 6.8.1, figure 6-9, the fourth form.
/// Contract: give() and take_back() at any time. While MSI is off, or a vector is masked or has no eventfd, kicks wait
/// in their eventfds; the pending bits show them. A guest that enables fewer messages than there are vectors gets
/// vector i as message i modulo their number: 6.8.1.6 leaves it to the device. A multiple message enable beyond what is
/// offered counts as what is offered. Messages do not depend on the bus master bit, since guests' ivshmem drivers do
/// not all set it.
/// Threads: any. Lifetime: eventfds outlive their stay.
/// Example:
///     auto msi = GM_TRY(Msi::create({.connector = machine}));
///     GM_TRY(msi->give(0, bell.view()));

namespace guestmem::pci {

class Msi final : public Capability {
public:
    static constexpr std::size_t max_vectors = 32;
    static constexpr std::uint8_t capability_id = 0x05;

    struct Options {
        std::size_t count_vectors = 1;  ///< a power of two
        std::shared_ptr<MsiConnector> connector = {};
        Report report = {};  ///< the first message that the machine refuses
    };
    [[nodiscard]] static Result<std::shared_ptr<Msi>> create(Options options);

    [[nodiscard]] Result<void> give(std::size_t vector, FdView eventfd);
    void take_back(std::size_t vector);
    /// Another eventfd that is the same message, until remove() or the first one is taken back.
    [[nodiscard]] Result<void> add(std::size_t vector, FdView eventfd);
    void remove(std::size_t vector, FdView eventfd);
    [[nodiscard]] std::size_t count_vectors() const { return vectors_.size(); }
    [[nodiscard]] bool is_enabled() const { return is_enabled_; }

    [[nodiscard]] CapabilityImage image() const override;
    void programmed(std::span<const std::byte> bytes) override;
    void refresh(std::span<std::byte> bytes) override;
    [[nodiscard]] bool replaces_intx() const override { return is_enabled_; }

private:
    explicit Msi(Options options);
    [[nodiscard]] Result<void> check(std::size_t vector) const;

    std::shared_ptr<MsiConnector> connector_;
    ReportOnce report_;
    std::atomic<bool> is_enabled_{false};
    std::mutex mutex_;
    std::vector<MessageVector> vectors_;
};

}  // namespace guestmem::pci
