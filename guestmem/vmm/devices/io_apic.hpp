// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>

#include "guestmem/device/interrupt.hpp"
#include "guestmem/device/io_device.hpp"

/// An I/O APIC with 24 pins at whatever address the machine gives it.
///
/// Concepts: registers as in Intel's data sheet 82093AA (order number 290566), section 3: a select register at 0x00, a
/// window at 0x10, and behind them ID, version, arbitration ID and 24 redirection entries of 64 bits. The local APICs
/// are the kernel's: an entry leaves as the message (MSI) that the kernel makes of a write to the pin's irqfd, and the
/// end of a level interrupt comes back as an exit of the processor. The version is 0x20, that of the I/O APICs with an
/// EOI register at 0x40 (Intel ICH9 data sheet, section 13.5.4), and not the 82093AA's 0x11: with a split irqchip KVM's
/// local APICs say that they can suppress EOI broadcasts, and a guest that does so ends its level interrupts with that
/// register alone.
/// Contract: an access begins at a register's offset, with any width: a narrow write is widened with zeros, a wide one
/// is cut at 32 bits, a narrow read gives the low bytes (as KVM's I/O APIC does). All else reads as ones. An edge that
/// comes while its entry is masked is lost; a level that is up when its entry is unmasked is delivered (data sheet,
/// section 3.2.4, bit 16). A level entry that was delivered is delivered again once its end is told and its line is up.
/// The polarity bit is kept and has no effect: a line that is up asks for an interrupt. Entries with ExtINT or a
/// reserved mode deliver nothing. Writing an entry as edge clears its remote IRR bit: so a driver ends an interrupt by
/// hand. A masked entry has no route, but keeps the one it has while its interrupt is being served: without it the
/// kernel would not tell of the end. A route that the machine refuses is asked for again at each use of the pin, and
/// until then the pin sends nothing: neither what it was before, nor an interrupt whose end nobody would tell. Remote
/// IRR is for the modes fixed and lowest priority; the others know no end of interrupt and are edges.
/// Threads: any. Output is called with the mutex held, so that routes and kicks come in the order of their reasons: it
/// must not call back.
/// Cost: a line that changes nothing takes an uncontended mutex.
/// Known holes: destinations have 8 bits, so processors beyond APIC ID 254 cannot be targets.

namespace guestmem::vmm {

/// What a machine does for its I/O APIC.
class IoApicOutput {
public:
    IoApicOutput() = default;
    IoApicOutput(const IoApicOutput&) = delete;
    IoApicOutput& operator=(const IoApicOutput&) = delete;
    virtual ~IoApicOutput() = default;

    /// The message that the pin's irqfd is; nothing: it is none. Called only for a change; at first all are nothing.
    /// False when the machine cannot: what was in force stays.
    [[nodiscard]] virtual bool route(std::uint32_t pin, std::optional<MsiMessage> message) = 0;
    /// Writes the pin's irqfd. Its route was given before.
    virtual void fire(std::uint32_t pin) = 0;
};

class IoApic final : public IoDevice {
public:
    static constexpr std::uint32_t pin_count = 24;
    static constexpr std::uint64_t window_bytes = 4096;
    static constexpr std::uint32_t version = 0x20;

    /// The output outlives the chip. `id` is what the ACPI tables call it: 4 bits.
    explicit IoApic(IoApicOutput& output, std::uint8_t id = 0);

    /// A pin of ours, below pin_count.
    [[nodiscard]] InterruptLine& line(std::uint32_t pin);
    /// A local APIC has ended the level interrupt of this vector (KVM_EXIT_IOAPIC_EOI).
    void end_of_interrupt(std::uint8_t vector);

    void read(std::uint64_t offset, std::span<std::byte> data) override;
    void write(std::uint64_t offset, std::span<const std::byte> data) override;

private:
    class Pin final : public InterruptLine {
    public:
        void belong_to(IoApic& chip, std::uint32_t number);
        void set(bool is_up) override;

        std::uint64_t entry = 0x1'0000;  ///< masked: the state after reset, section 3.2.4
        bool is_up = false;
        std::optional<MsiMessage> route;  ///< in force, whatever the entry wants

    private:
        IoApic* chip_ = nullptr;
        std::uint32_t number_ = 0;
    };

    void set_line(std::uint32_t number, bool is_up);
    [[nodiscard]] std::uint32_t read_register() const;
    void write_register(std::uint32_t value);
    void write_entry(std::uint32_t number, bool is_high, std::uint32_t value);
    void update_route(std::uint32_t number);
    /// Whether a kick is what the entry says.
    [[nodiscard]] bool is_routed(std::uint32_t number);
    void deliver_level(std::uint32_t number);
    void end_locked(std::uint8_t vector);

    IoApicOutput& output_;
    mutable std::mutex mutex_;
    std::uint32_t id_;
    std::uint8_t select_ = 0;
    std::array<Pin, pin_count> pins_;
};

}  // namespace guestmem::vmm
