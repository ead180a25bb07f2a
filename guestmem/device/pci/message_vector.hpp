// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/device/interrupt.hpp"
#include "guestmem/sys/fd.hpp"

/// One vector of MSI or MSI-X: an eventfd that may come and go, and what the guest wants it to be.
///
/// Contract: want() says the message, or nothing while the vector is masked, disabled or switched off; only a change
/// reaches the machine. What the machine refuses is masked, and tried again at the next want(). give() of another
/// eventfd leaves the kicks that wait in the old one to its owner; where it fails, the old one stays. add() gives
/// further ones, which are the same message as long as the first one stays.
/// Threads: one at a time.
/// Lifetime: the eventfd outlives its stay here.

namespace guestmem::pci {

class MessageVector {
public:
    [[nodiscard]] Result<void> give(MsiConnector& connector, FdView eventfd);
    void take_back();
    [[nodiscard]] Result<void> add(FdView eventfd);
    void remove(FdView eventfd);
    [[nodiscard]] bool is_given() const { return interrupt_ != nullptr; }

    [[nodiscard]] Result<void> want(const std::optional<MsiMessage>& message);
    /// want() with the same follows, as for other vectors.
    void expect(const std::optional<MsiMessage>& message) const;
    /// Whether a kick waits for the vector to be unmasked (the pending bit of PCI 3.0, 6.8.3.4).
    [[nodiscard]] bool is_pending() const;

private:
    FdView eventfd_;
    std::vector<FdView> others_;
    std::unique_ptr<MsiInterrupt> interrupt_;
    std::optional<MsiMessage> wanted_;
    std::optional<MsiMessage> live_;  ///< what the machine was told last and did
};

}  // namespace guestmem::pci
