// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/io_apic.hpp"

#include <algorithm>
#include <cstddef>

#include "guestmem/base/check.hpp"

namespace guestmem::vmm {
namespace {

// 82093AA, section 3.1: offsets in the window; the EOI register is ICH9's.
constexpr std::uint64_t select_offset = 0x00;
constexpr std::uint64_t window_offset = 0x10;
constexpr std::uint64_t eoi_offset = 0x40;

// Section 3.2: what the select register chooses.
constexpr std::uint8_t id_register = 0x00;
constexpr std::uint8_t version_register = 0x01;
constexpr std::uint8_t arbitration_register = 0x02;
constexpr std::uint8_t first_entry_register = 0x10;

// Section 3.2.4: bits of a redirection entry. Delivery status (bit 12) is always idle: a kick is delivered at once.
constexpr std::uint64_t logical_bit = 1U << 11U;
constexpr std::uint64_t remote_irr_bit = 1U << 14U;
constexpr std::uint64_t level_bit = 1U << 15U;
constexpr std::uint64_t mask_bit = 1U << 16U;
constexpr std::uint64_t writable_low = 0x1'afff;
constexpr std::uint64_t writable_high = 0xff00'0000ULL << 32U;
constexpr std::uint64_t low_half = 0xffff'ffff;

// Section 3.2.4, bits 10:8.
enum class DeliveryMode : std::uint8_t {
    fixed = 0,
    lowest_priority = 1,
    smi = 2,
    nmi = 4,
    init = 5,
    extint = 7
};

DeliveryMode mode_of(std::uint64_t entry) { return static_cast<DeliveryMode>(entry >> 8U & 7U); }
std::uint8_t vector_of(std::uint64_t entry) { return static_cast<std::uint8_t>(entry); }

bool has_end(std::uint64_t entry) {
    const DeliveryMode mode = mode_of(entry);
    return mode == DeliveryMode::fixed || mode == DeliveryMode::lowest_priority;
}

bool is_level(std::uint64_t entry) { return (entry & level_bit) != 0 && has_end(entry); }

/// The message of an entry: Intel's manual, volume 3, section "Message Address Register Format" and the one after it.
std::optional<MsiMessage> message_of(std::uint64_t entry) {
    switch (mode_of(entry)) {
        case DeliveryMode::fixed:
        case DeliveryMode::lowest_priority:
        case DeliveryMode::smi:
        case DeliveryMode::nmi:
        case DeliveryMode::init: break;
        default: return std::nullopt;
    }
    MsiMessage message{.address = 0xfee0'0000, .data = 0};
    message.address |= (entry >> 56U) << 12U;
    if ((entry & logical_bit) != 0) message.address |= 1U << 2U;
    message.data = static_cast<std::uint32_t>(entry & 0x7ffU);
    // Trigger mode level and level assert: without them the kernel does not tell of the end.
    if (is_level(entry)) message.data |= 0xc000;
    return message;
}

std::uint32_t widen(std::span<const std::byte> data) {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < std::min<std::size_t>(data.size(), 4); ++i)
        value |= std::to_integer<std::uint32_t>(data[i]) << (8 * i);
    return value;
}

}  // namespace

void IoApic::Pin::belong_to(IoApic& chip, std::uint32_t number) {
    chip_ = &chip;
    number_ = number;
}

void IoApic::Pin::set(bool is_asserted) { chip_->set_line(number_, is_asserted); }

IoApic::IoApic(IoApicOutput& output, std::uint8_t id) : output_(output), id_((id & 0xfU) << 24U) {
    for (std::uint32_t number = 0; number < pin_count; ++number) pins_.at(number).belong_to(*this, number);
}

InterruptLine& IoApic::line(std::uint32_t pin) {
    GM_CHECK(pin < pin_count);
    return pins_.at(pin);
}

void IoApic::set_line(std::uint32_t number, bool is_up) {
    const std::scoped_lock lock{mutex_};
    Pin& pin = pins_.at(number);
    if (pin.is_up == is_up) return;
    pin.is_up = is_up;
    if (!is_up) return;
    if (is_level(pin.entry)) {
        deliver_level(number);
    } else if ((pin.entry & mask_bit) == 0 && is_routed(number)) {
        output_.fire(number);
    }
}

void IoApic::deliver_level(std::uint32_t number) {
    Pin& pin = pins_.at(number);
    if (!is_level(pin.entry) || !pin.is_up || (pin.entry & (mask_bit | remote_irr_bit)) != 0) return;
    if (!is_routed(number)) return;
    pin.entry |= remote_irr_bit;
    output_.fire(number);
}

void IoApic::update_route(std::uint32_t number) {
    Pin& pin = pins_.at(number);
    const bool is_masked = (pin.entry & mask_bit) != 0;
    if (is_masked && (pin.entry & remote_irr_bit) != 0) return;
    const std::optional<MsiMessage> route = is_masked ? std::nullopt : message_of(pin.entry);
    if (route != pin.route && output_.route(number, route)) pin.route = route;
}

bool IoApic::is_routed(std::uint32_t number) {
    update_route(number);
    const Pin& pin = pins_.at(number);
    return pin.route && pin.route == message_of(pin.entry);
}

void IoApic::end_of_interrupt(std::uint8_t vector) {
    const std::scoped_lock lock{mutex_};
    end_locked(vector);
}

void IoApic::end_locked(std::uint8_t vector) {
    for (std::uint32_t number = 0; number < pin_count; ++number) {
        Pin& pin = pins_.at(number);
        if ((pin.entry & remote_irr_bit) == 0 || vector_of(pin.entry) != vector) continue;
        pin.entry &= ~remote_irr_bit;
        update_route(number);
        deliver_level(number);
    }
}

std::uint32_t IoApic::read_register() const {
    switch (select_) {
        case id_register:
        case arbitration_register: return id_;
        case version_register: return (pin_count - 1) << 16U | version;
        default: break;
    }
    if (select_ < first_entry_register || select_ >= first_entry_register + 2 * pin_count) return 0xffff'ffff;
    const std::uint32_t index = select_ - first_entry_register;
    const std::uint64_t entry = pins_.at(index / 2).entry;
    return static_cast<std::uint32_t>(index % 2 == 0 ? entry : entry >> 32U);
}

void IoApic::write_register(std::uint32_t value) {
    if (select_ == id_register) id_ = value & 0x0f00'0000U;
    if (select_ < first_entry_register || select_ >= first_entry_register + 2 * pin_count) return;
    const std::uint32_t index = select_ - first_entry_register;
    write_entry(index / 2, index % 2 != 0, value);
}

void IoApic::write_entry(std::uint32_t number, bool is_high, std::uint32_t value) {
    std::uint64_t& entry = pins_.at(number).entry;
    if (is_high) {
        entry = (entry & low_half) | (std::uint64_t{value} << 32U & writable_high);
    } else {
        entry = (entry & ~writable_low) | (value & writable_low);
        if (!is_level(entry)) entry &= ~remote_irr_bit;
    }
    update_route(number);
    deliver_level(number);
}

void IoApic::read(std::uint64_t offset, std::span<std::byte> data) {
    const std::scoped_lock lock{mutex_};
    if (offset != select_offset && offset != window_offset) return;
    const std::uint32_t value = offset == select_offset ? select_ : read_register();
    for (std::size_t i = 0; i < std::min<std::size_t>(data.size(), 4); ++i)
        data[i] = static_cast<std::byte>(value >> (8 * i));
}

void IoApic::write(std::uint64_t offset, std::span<const std::byte> data) {
    const std::uint32_t value = widen(data);
    const std::scoped_lock lock{mutex_};
    switch (offset) {
        case select_offset: select_ = static_cast<std::uint8_t>(value); break;
        case window_offset: write_register(value); break;
        case eoi_offset: end_locked(static_cast<std::uint8_t>(value)); break;
        default: break;
    }
}

}  // namespace guestmem::vmm
