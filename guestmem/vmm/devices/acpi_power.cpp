// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/acpi_power.hpp"

#include <algorithm>
#include <optional>
#include <utility>

namespace guestmem::vmm {
namespace {

// ACPI 6.5, tables 4.13 and 4.14: the same bits tell and enable.
constexpr std::uint16_t timer_event = 1U << 0U;
constexpr std::uint16_t global_event = 1U << 5U;
constexpr std::uint16_t power_button_event = 1U << 8U;
constexpr std::uint16_t clock_event = 1U << 10U;
constexpr std::uint16_t wake_event = 1U << 15U;
constexpr std::uint16_t enable_bits = timer_event | global_event | power_button_event | clock_event;

// Table 4.15: PM1 control.
constexpr std::uint16_t sci_enable = 1U << 0U;
constexpr std::uint16_t sleep_enable = 1U << 13U;
constexpr std::uint16_t control_kept = 0x1c02;  // SLP_TYP and BM_RLD

// 3.579545 MHz are 63 ticks in 17,600 ns.
constexpr std::uint64_t ticks_of_turn = 63;
constexpr std::uint64_t ns_of_turn = 17'600;

std::uint64_t to_ticks(std::uint64_t time_ns) {
    return time_ns / ns_of_turn * ticks_of_turn + time_ns % ns_of_turn * ticks_of_turn / ns_of_turn;
}

std::uint64_t to_ns(std::uint64_t ticks) {
    const std::uint64_t rest = ticks % ticks_of_turn * ns_of_turn;
    return ticks / ticks_of_turn * ns_of_turn + (rest + ticks_of_turn - 1) / ticks_of_turn;
}

std::uint8_t byte_of(std::uint16_t value, std::uint64_t number) {
    return static_cast<std::uint8_t>(value >> (8 * number));
}

std::uint16_t with_byte(std::uint16_t value, std::uint64_t number, std::uint8_t byte) {
    const unsigned shift = number == 0 ? 0 : 8;
    return static_cast<std::uint16_t>((value & ~(0xffU << shift)) | unsigned{byte} << shift);
}

}  // namespace

AcpiPower::AcpiPower(DeviceClock& clock, InterruptLine& sci, std::function<void()> power_off,
                     TimerWidth width)
    : clock_(clock),
      sci_(sci),
      power_off_(std::move(power_off)),
      width_(width),
      event_ports_(
          event_port_count, [this](std::uint64_t offset) { return read_event(offset); },
          [this](std::uint64_t offset, std::uint8_t value) { write_event(offset, value); }),
      control_ports_(
          control_port_count, [this](std::uint64_t offset) { return read_control(offset); },
          [this](std::uint64_t offset, std::uint8_t value) { write_control(offset, value); }),
      alarm_(clock.make_alarm([this] {
          const std::scoped_lock lock{mutex_};
          follow();
      })) {
    last_half_ = ticks() / half_turn();
}

std::uint64_t AcpiPower::ticks() const { return to_ticks(clock_.now_ns()); }

std::uint64_t AcpiPower::half_turn() const { return std::uint64_t{1} << (std::to_underlying(width_) - 1U); }

void AcpiPower::follow() {
    const std::uint64_t half = std::max(last_half_, ticks() / half_turn());
    if (half != last_half_) status_ |= timer_event;
    last_half_ = half;
    const bool is_timer_wanted = (enabled_ & timer_event) != 0 && (status_ & timer_event) == 0;
    sci_.set((status_ & enabled_) != 0);
    alarm_->set(is_timer_wanted ? std::optional{to_ns((half + 1) * half_turn())} : std::nullopt);
}

void AcpiPower::press_power_button() {
    const std::scoped_lock lock{mutex_};
    status_ |= power_button_event;
    follow();
}

std::uint8_t AcpiPower::read_event(std::uint64_t offset) {
    const std::scoped_lock lock{mutex_};
    follow();
    return byte_of(offset < 2 ? status_ : enabled_, offset % 2);
}

void AcpiPower::write_event(std::uint64_t offset, std::uint8_t value) {
    const std::scoped_lock lock{mutex_};
    follow();
    if (offset < 2) {
        // Writing a one clears.
        status_ &= static_cast<std::uint16_t>(~with_byte(0, offset, value));
    } else {
        enabled_ = with_byte(enabled_, offset - 2, value) & enable_bits;
    }
    follow();
}

std::uint8_t AcpiPower::read_control(std::uint64_t offset) {
    const std::scoped_lock lock{mutex_};
    return byte_of(control_, offset);
}

void AcpiPower::write_control(std::uint64_t offset, std::uint8_t value) {
    bool is_off = false;
    {
        const std::scoped_lock lock{mutex_};
        const std::uint16_t written = with_byte(control_, offset, value);
        control_ = static_cast<std::uint16_t>((written & control_kept) | sci_enable);
        if ((written & sleep_enable) != 0) {
            is_off = (written >> 10U & 7U) == sleep_type_s5;
            if (!is_off) status_ |= wake_event;
        }
    }
    if (is_off && power_off_) power_off_();
}

void AcpiPower::TimerPorts::read(std::uint64_t offset, std::span<std::byte> data) {
    const std::uint64_t mask = 2 * chip_.half_turn() - 1;
    const std::uint64_t value = chip_.ticks() & mask;
    for (std::byte& byte : data) {
        if (offset >= timer_port_count) return;
        byte = static_cast<std::byte>(value >> (8 * offset++));
    }
}

void AcpiPower::TimerPorts::write(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) {}

}  // namespace guestmem::vmm
