// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/serial8250.hpp"

#include <algorithm>
#include <utility>

namespace guestmem::vmm {
namespace {

// PC16550D, table II: offsets, and those that share one with the divisor.
constexpr std::uint64_t data_register = 0;
constexpr std::uint64_t interrupt_enable_register = 1;
constexpr std::uint64_t interrupt_id_register = 2;  // write: FIFO control
constexpr std::uint64_t line_control_register = 3;
constexpr std::uint64_t modem_control_register = 4;
constexpr std::uint64_t line_status_register = 5;
constexpr std::uint64_t modem_status_register = 6;
constexpr std::uint64_t scratch_register = 7;

// Section 8.7, interrupt enable.
constexpr std::uint8_t enable_received = 0x01;
constexpr std::uint8_t enable_empty = 0x02;
constexpr std::uint8_t enable_line_status = 0x04;
constexpr std::uint8_t enable_modem_status = 0x08;

// Section 8.6, table IV: interrupt identification.
constexpr std::uint8_t id_none = 0x01;
constexpr std::uint8_t id_line_status = 0x06;
constexpr std::uint8_t id_received = 0x04;
constexpr std::uint8_t id_timeout = 0x0c;
constexpr std::uint8_t id_empty = 0x02;
constexpr std::uint8_t id_modem_status = 0x00;
constexpr std::uint8_t id_fifo = 0xc0;

// Section 8.4, line status.
constexpr std::uint8_t status_ready = 0x01;
constexpr std::uint8_t status_overrun = 0x02;
constexpr std::uint8_t status_empty = 0x60;  // holding register and shift register

// Section 8.8, modem control.
constexpr std::uint8_t control_dtr = 0x01;
constexpr std::uint8_t control_rts = 0x02;
constexpr std::uint8_t control_out1 = 0x04;
constexpr std::uint8_t control_out2 = 0x08;
constexpr std::uint8_t control_loop = 0x10;

// Section 8.9, modem status: the deltas are these shifted down by 4.
constexpr std::uint8_t modem_cts = 0x10;
constexpr std::uint8_t modem_dsr = 0x20;
constexpr std::uint8_t modem_ri = 0x40;
constexpr std::uint8_t modem_dcd = 0x80;

constexpr std::uint8_t divisor_bit = 0x80;

}  // namespace

Serial8250::Serial8250(InterruptLine& line, Options options)
    : line_(line),
      options_(std::move(options)),
      ports_(
          port_count, [this](std::uint64_t offset) { return read_port(offset); },
          [this](std::uint64_t offset, std::uint8_t value) { write_port(offset, value); }) {}

bool Serial8250::is_loop() const { return (modem_control_ & control_loop) != 0; }
bool Serial8250::is_divisor_open() const { return (line_control_ & divisor_bit) != 0; }

std::size_t Serial8250::trigger_level() const {
    constexpr std::array<std::size_t, 4> levels{1, 4, 8, 14};  // section 8.5, bits 7:6
    return is_fifo() ? levels.at(fifo_control_ >> 6U) : 1;
}

std::uint8_t Serial8250::interrupt_id() const {
    if ((interrupt_enable_ & enable_line_status) != 0 && line_errors_ != 0) return id_line_status;
    if ((interrupt_enable_ & enable_received) != 0 && received_count_ != 0)
        return received_count_ >= trigger_level() ? id_received : id_timeout;
    if ((interrupt_enable_ & enable_empty) != 0 && is_empty_pending_) return id_empty;
    if ((interrupt_enable_ & enable_modem_status) != 0 && modem_deltas_ != 0) return id_modem_status;
    return id_none;
}

std::uint8_t Serial8250::modem_inputs() const {
    if (!is_loop()) return modem_cts | modem_dsr | modem_dcd;
    unsigned inputs = 0;
    if ((modem_control_ & control_rts) != 0) inputs |= modem_cts;
    if ((modem_control_ & control_dtr) != 0) inputs |= modem_dsr;
    if ((modem_control_ & control_out1) != 0) inputs |= modem_ri;
    if ((modem_control_ & control_out2) != 0) inputs |= modem_dcd;
    return static_cast<std::uint8_t>(inputs);
}

std::size_t Serial8250::receive(std::span<const std::byte> bytes) {
    const std::scoped_lock lock{mutex_};
    const std::size_t room = is_loop() ? 0 : capacity() - received_count_;
    const std::size_t count = std::min(room, bytes.size());
    for (const std::byte byte : bytes.first(count)) put_received(std::to_integer<std::uint8_t>(byte));
    if (count < bytes.size()) was_refused_ = true;
    line_.set(interrupt_id() != id_none);
    return count;
}

void Serial8250::put_received(std::uint8_t value) {
    if (received_count_ == capacity()) {
        // Section 8.4, bit 1: with FIFOs the byte is lost, without them the one before it.
        line_errors_ |= status_overrun;
        if (!is_fifo()) received_.at(first_received_) = value;
        return;
    }
    received_.at((first_received_ + received_count_) % fifo_bytes) = value;
    ++received_count_;
}

std::uint8_t Serial8250::take_received() {
    if (received_count_ == 0) return 0;
    const std::uint8_t value = received_.at(first_received_);
    first_received_ = (first_received_ + 1) % fifo_bytes;
    --received_count_;
    return value;
}

void Serial8250::clear_received() {
    first_received_ = 0;
    received_count_ = 0;
}

bool Serial8250::take_room_notice() {
    if (!was_refused_ || is_loop() || received_count_ == capacity()) return false;
    was_refused_ = false;
    return true;
}

void Serial8250::finish(const After& after) {
    if (after.is_sent && options_.send) options_.send(after.sent);
    if (after.has_room && options_.has_room) options_.has_room();
}

std::uint8_t Serial8250::read_port(std::uint64_t offset) {
    After after;
    std::uint8_t value = 0;
    {
        const std::scoped_lock lock{mutex_};
        value = read_register(offset);
        after.has_room = take_room_notice();
        line_.set(interrupt_id() != id_none);
    }
    finish(after);
    return value;
}

void Serial8250::write_port(std::uint64_t offset, std::uint8_t value) {
    After after;
    {
        const std::scoped_lock lock{mutex_};
        write_register(offset, value, after);
        after.has_room = take_room_notice();
        line_.set(interrupt_id() != id_none);
    }
    finish(after);
}

std::uint8_t Serial8250::read_register(std::uint64_t offset) {
    if (is_divisor_open() && offset <= interrupt_enable_register) return divisor_.at(offset);
    switch (offset) {
        case data_register: return take_received();
        case interrupt_enable_register: return interrupt_enable_;
        case interrupt_id_register: {
            const std::uint8_t id = interrupt_id();
            if (id == id_empty) is_empty_pending_ = false;
            return id | (is_fifo() ? id_fifo : std::uint8_t{0});
        }
        case line_control_register: return line_control_;
        case modem_control_register: return modem_control_;
        case line_status_register: {
            const std::uint8_t errors = std::exchange(line_errors_, std::uint8_t{0});
            return errors | status_empty | (received_count_ != 0 ? status_ready : std::uint8_t{0});
        }
        case modem_status_register: return modem_inputs() | std::exchange(modem_deltas_, std::uint8_t{0});
        case scratch_register: return scratch_;
        default: return 0xff;
    }
}

void Serial8250::write_register(std::uint64_t offset, std::uint8_t value, After& after) {
    if (is_divisor_open() && offset <= interrupt_enable_register) {
        divisor_.at(offset) = value;
        return;
    }
    switch (offset) {
        case data_register: return write_data(value, after);
        case interrupt_enable_register: return write_interrupt_enable(value);
        case interrupt_id_register: return write_fifo_control(value);
        case line_control_register: line_control_ = value; return;
        case modem_control_register: return write_modem_control(value);
        case scratch_register: scratch_ = value; return;
        default: return;  // the status registers are for reading; writing them is for factory tests
    }
}

void Serial8250::write_data(std::uint8_t value, After& after) {
    is_empty_pending_ = true;  // it is sent, and empty again
    if (is_loop()) return put_received(value);
    after.is_sent = true;
    after.sent = std::byte{value};
}

void Serial8250::write_interrupt_enable(std::uint8_t value) {
    const bool was_enabled = (interrupt_enable_ & enable_empty) != 0;
    interrupt_enable_ = value & 0x0fU;
    // Enabling it with an empty transmitter is an interrupt at once: drivers start sending that way.
    if (!was_enabled && (value & enable_empty) != 0) is_empty_pending_ = true;
}

void Serial8250::write_fifo_control(std::uint8_t value) {
    const bool is_turned = ((value ^ fifo_control_) & 1U) != 0;
    // Section 8.5: bit 0 must be 1 when the others are written, and turning it clears the FIFOs.
    if (is_turned || (value & 0x03U) == 0x03U) clear_received();
    if (is_turned || (value & 0x05U) == 0x05U) is_empty_pending_ = true;
    fifo_control_ = (value & 1U) != 0 ? value & 0xc9U : 0;
}

void Serial8250::write_modem_control(std::uint8_t value) {
    const std::uint8_t before = modem_inputs();
    modem_control_ = value & 0x1fU;
    const std::uint8_t after = modem_inputs();
    unsigned changed = before ^ after;
    if ((after & modem_ri) != 0) changed &= ~unsigned{modem_ri};  // section 8.9: the trailing edge of RI
    modem_deltas_ |= static_cast<std::uint8_t>(changed >> 4U);
}

}  // namespace guestmem::vmm
