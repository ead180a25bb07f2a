// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <mutex>

#include "guestmem/device/interrupt.hpp"

/// The INTx pin of a PCI function: what the device says, through the gates of its configuration.
///
/// Concepts: the device sets the pin as an InterruptLine; the line behind it hears of it unless the guest has set
/// Interrupt Disable (PCI 3.0, 6.2.2) or switched to messages (6.8.1.3). The Interrupt Status bit (6.2.3) shows what
/// the device says in any case.
/// Contract: a pin that is connected to nothing keeps what it was told; connected, or its gate opened, it says so.
/// Threads: any. The line is set under the pin's mutex.
/// Lifetime: the device and its function share it, so that neither has to own the other.

namespace guestmem::pci {

class IntxPin final : public InterruptLine {
public:
    void set(bool is_up) override;

    /// The line behind the pin; nullptr: none. The old one is let down first.
    void connect(std::shared_ptr<InterruptLine> line);
    void set_gate(bool is_open);
    [[nodiscard]] bool is_up() const;

private:
    void drive();

    mutable std::mutex mutex_;
    std::shared_ptr<InterruptLine> line_;
    bool is_up_ = false;
    bool is_gate_open_ = true;
    bool is_driven_ = false;
};

}  // namespace guestmem::pci
