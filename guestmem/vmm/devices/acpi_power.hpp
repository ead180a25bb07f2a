// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>

#include "guestmem/device/device_clock.hpp"
#include "guestmem/device/interrupt.hpp"
#include "guestmem/vmm/devices/byte_window.hpp"

/// The fixed hardware of ACPI that a machine needs to be switched off: PM1 events and control, the power button, the PM
/// timer.
///
/// Concepts: ACPI specification 6.5, section 4.8.3. Three windows, for the FADT's PM1a_EVT_BLK (4 ports), PM1a_CNT_BLK
/// (2 ports) and PM_TMR_BLK (4 ports). The timer counts 3.579545 MHz (315/88) of the DeviceClock. For the tables:
/// SMI_CMD is 0, so the machine is always in ACPI mode, SCI_EN is on and stays so; the flag TMR_VAL_EXT says that the
/// timer has 32 bits; \_S5 is a package of sleep_type_s5 twice; no other sleep state is in the tables. The power button
/// is fixed hardware: PWR_BUTTON is 0; SLP_BUTTON is 1. The clock's alarm (RTC_EN) can be enabled, as Linux complains
/// when it cannot, and is never told: there is no sleep to wake from.
/// Contract: writing SLP_EN with sleep_type_s5 calls power_off; with another type the machine wakes at once (WAK_STS).
/// The SCI is a level: it is up while an event is both told and enabled. The timer's status is set whenever its highest
/// bit changes.
/// Threads: any. `power_off` is called without the mutex, from the thread of the access, perhaps several times; it must
/// not wait. The line is set with the mutex held: it must not call back.
/// Lifetime: clock and line outlive the chip.

namespace guestmem::vmm {

class AcpiPower {
public:
    enum class TimerWidth : std::uint8_t { bits_24 = 24, bits_32 = 32 };
    static constexpr std::uint8_t sleep_type_s5 = 5;
    static constexpr std::uint64_t event_port_count = 4;
    static constexpr std::uint64_t control_port_count = 2;
    static constexpr std::uint64_t timer_port_count = 4;

    AcpiPower(DeviceClock& clock, InterruptLine& sci, std::function<void()> power_off,
              TimerWidth width = TimerWidth::bits_32);
    AcpiPower(const AcpiPower&) = delete;
    AcpiPower& operator=(const AcpiPower&) = delete;

    /// Somebody asks the guest to shut down.
    void press_power_button();

    [[nodiscard]] IoDevice& event_ports() { return event_ports_; }
    [[nodiscard]] IoDevice& control_ports() { return control_ports_; }
    [[nodiscard]] IoDevice& timer_ports() { return timer_ports_; }

private:
    /// All four bytes of one read are of one moment.
    class TimerPorts final : public IoDevice {
    public:
        explicit TimerPorts(AcpiPower& chip) : chip_(chip) {}
        void read(std::uint64_t offset, std::span<std::byte> data) override;
        void write(std::uint64_t offset, std::span<const std::byte> data) override;

    private:
        AcpiPower& chip_;
    };

    std::uint8_t read_event(std::uint64_t offset);
    void write_event(std::uint64_t offset, std::uint8_t value);
    std::uint8_t read_control(std::uint64_t offset);
    void write_control(std::uint64_t offset, std::uint8_t value);
    [[nodiscard]] std::uint64_t ticks() const;
    [[nodiscard]] std::uint64_t half_turn() const;
    /// Notes the timer's carries, tells the line, sets the alarm for the next carry.
    void follow();

    DeviceClock& clock_;
    InterruptLine& sci_;
    std::function<void()> power_off_;
    TimerWidth width_;
    std::mutex mutex_;
    std::uint16_t status_ = 0;
    std::uint16_t enabled_ = 0;
    std::uint16_t control_ = 1;    ///< SCI_EN
    std::uint64_t last_half_ = 0;  ///< half turns of the timer that were noted
    ByteWindow event_ports_;
    ByteWindow control_ports_;
    TimerPorts timer_ports_{*this};
    std::unique_ptr<DeviceAlarm> alarm_;  ///< last: destroyed first, and waits for its handler
};

}  // namespace guestmem::vmm
