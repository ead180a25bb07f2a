// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "guestmem/device/interrupt.hpp"
#include "guestmem/device/interrupt_pin.hpp"
#include "guestmem/vmm/devices/io_apic.hpp"
#include "guestmem/vmm/devices/pic.hpp"
#include "guestmem/vmm/kvm_interrupts.hpp"

/// The interrupt wires of a PC: from a device's pin to both controllers, and from those to the processors.
///
/// Concepts: an ISA interrupt goes to the old controllers' input and to the I/O APIC's pin of the same number, and
/// a guest masks one of them. Pins from 16 on are the I/O APIC's alone.
/// Contract: wires are made before the guest runs and live as long as the Wiring.
/// Threads: any.

namespace guestmem::vmm {

class Wiring final : public IoApicOutput, public InterruptLine {
public:
    /// `notice` is called when the old controllers want the first processor.
    Wiring(KvmInterrupts& interrupts, std::function<void()> notice);

    /// A wire to a pin below IoApic::pin_count. A pin that several devices share is up while any of them is.
    [[nodiscard]] std::shared_ptr<InterruptLine> wire(std::uint32_t pin);

    [[nodiscard]] IoApic& io_apic() { return *io_apic_; }
    [[nodiscard]] const std::shared_ptr<IoApic>& io_apic_device() const { return io_apic_; }
    [[nodiscard]] const std::shared_ptr<Pic>& pic() const { return pic_; }
    [[nodiscard]] bool has_interrupt() const { return pic_->is_requesting(); }

    [[nodiscard]] bool route(std::uint32_t pin, std::optional<MsiMessage> message) override;
    void fire(std::uint32_t pin) override;
    /// INTR of the old controllers.
    void set(bool is_up) override;

private:
    class Wire;

    KvmInterrupts& interrupts_;
    std::function<void()> notice_;
    std::shared_ptr<IoApic> io_apic_;
    std::shared_ptr<Pic> pic_;
    std::vector<InterruptPin> pins_;
};

}  // namespace guestmem::vmm
