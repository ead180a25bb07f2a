// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>

#include "guestmem/device/interrupt.hpp"
#include "guestmem/vmm/devices/byte_window.hpp"

/// A serial port: a 16550A without a wire, so that bytes take no time.
///
/// Concepts: registers as in National Semiconductor's data sheet PC16550D, section 8. What the guest sends leaves
/// through a function of the machine's; what arrives is offered with receive().
/// Contract: the transmitter is always empty again when the guest looks. receive() says how many bytes it took: no byte
/// is lost to an overrun from outside, and once it took fewer than offered, has_room is called when it can take some
/// again. In loopback nothing is taken. Received bytes below the FIFO's trigger level give the character timeout
/// interrupt at once: there is no line whose silence could be waited for. CTS, DSR and DCD are up. The interrupt does
/// not need OUT2, which gates it on a PC's board: drivers that set it see no difference.
/// Threads: any. Both functions are called without a mutex, from the thread of the access: they must not wait. The line
/// is set with the mutex held: it must not call back.
/// Known holes: bytes that two processors write at the same time leave in any order; no parity or framing errors; the
/// divisor, the word length and a break that the guest sends are kept and have no effect.

namespace guestmem::vmm {

class Serial8250 {
public:
    static constexpr std::size_t fifo_bytes = 16;
    static constexpr std::uint64_t port_count = 8;

    struct Options {
        std::function<void(std::byte)> send = {};  ///< a byte of the guest's
        std::function<void()> has_room = {};       ///< receive() can take bytes again
    };
    /// The line outlives the chip.
    Serial8250(InterruptLine& line, Options options);
    Serial8250(const Serial8250&) = delete;
    Serial8250& operator=(const Serial8250&) = delete;

    /// Takes the first bytes that there is room for, and gives their number.
    [[nodiscard]] std::size_t receive(std::span<const std::byte> bytes);

    [[nodiscard]] IoDevice& ports() { return ports_; }

private:
    /// What is to be done once the mutex is free.
    struct After {
        bool is_sent = false;
        std::byte sent{};
        bool has_room = false;
    };

    std::uint8_t read_port(std::uint64_t offset);
    void write_port(std::uint64_t offset, std::uint8_t value);
    std::uint8_t read_register(std::uint64_t offset);
    void write_register(std::uint64_t offset, std::uint8_t value, After& after);
    void write_data(std::uint8_t value, After& after);
    void write_interrupt_enable(std::uint8_t value);
    void write_fifo_control(std::uint8_t value);
    void write_modem_control(std::uint8_t value);
    std::uint8_t take_received();
    void clear_received();
    void put_received(std::uint8_t value);
    [[nodiscard]] std::uint8_t interrupt_id() const;
    [[nodiscard]] std::uint8_t modem_inputs() const;
    [[nodiscard]] bool is_fifo() const { return (fifo_control_ & 1U) != 0; }
    [[nodiscard]] bool is_loop() const;
    [[nodiscard]] bool is_divisor_open() const;
    [[nodiscard]] std::size_t capacity() const { return is_fifo() ? fifo_bytes : 1; }
    [[nodiscard]] std::size_t trigger_level() const;
    [[nodiscard]] bool take_room_notice();
    void finish(const After& after);

    InterruptLine& line_;
    Options options_;
    std::mutex mutex_;
    std::array<std::uint8_t, fifo_bytes> received_{};
    std::size_t first_received_ = 0;
    std::size_t received_count_ = 0;
    std::uint8_t interrupt_enable_ = 0;
    std::uint8_t fifo_control_ = 0;
    std::uint8_t line_control_ = 0;
    std::uint8_t modem_control_ = 0;
    std::uint8_t line_errors_ = 0;
    std::uint8_t modem_deltas_ = 0;
    std::uint8_t scratch_ = 0;
    std::array<std::uint8_t, 2> divisor_{12, 0};  ///< 9600 baud, as firmware leaves it
    bool is_empty_pending_ = false;               ///< the interrupt "transmitter holding register empty"
    bool was_refused_ = false;
    ByteWindow ports_;
};

}  // namespace guestmem::vmm
