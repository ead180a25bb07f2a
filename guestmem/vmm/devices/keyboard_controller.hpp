// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <mutex>

#include "guestmem/device/interrupt.hpp"
#include "guestmem/vmm/devices/byte_window.hpp"

/// The keyboard controller of a PC with a keyboard whose keys nobody presses, and the ports that reset a machine.
///
/// Concepts: an 8042 as in IBM's PS/2 Technical Reference, "Keyboard and Auxiliary Device Controller": data at 0x60,
/// commands and status at 0x64. The keyboard answers its commands; there is no auxiliary port, and what tests for one
/// is told so without a wait: its loop comes back as the keyboard's, and its test finds the clock line stuck. Three
/// ways lead to a reset: command 0xfe (or an output port whose bit 0 is 0), bit 0 of port 0x92 going up, and bit 2 of
/// port 0xcf9 going up (PIIX3 data sheet, order number 290550, section 2.5.5).
/// Contract: what the keyboard says waits in a queue; what does not fit is dropped, as a keyboard's buffer overruns.
/// The line of interrupt 1 is up while a byte is to be read and the controller's interrupt is enabled; it goes down and
/// up again between two bytes.
/// Threads: any. `reset` is called without the mutex, from the thread of the access, perhaps several times; it must not
/// wait. The line is set with the mutex held: it must not call back.
/// Known holes: A20 is always on. No scan codes, so translation touches the keyboard's identity alone.

namespace guestmem::vmm {

class KeyboardController {
public:
    static constexpr std::size_t queue_bytes = 16;

    /// The line outlives the controller.
    KeyboardController(InterruptLine& line, std::function<void()> reset);
    KeyboardController(const KeyboardController&) = delete;
    KeyboardController& operator=(const KeyboardController&) = delete;

    [[nodiscard]] IoDevice& data_port() { return data_port_; }        ///< 1 port: 0x60
    [[nodiscard]] IoDevice& command_port() { return command_port_; }  ///< 1 port: 0x64
    [[nodiscard]] IoDevice& system_port() { return system_port_; }    ///< 1 port: 0x92
    /// 1 port: 0xcf9, in the middle of PCI's 0xcf8; a machine with PCI hands byte accesses on.
    [[nodiscard]] IoDevice& reset_port() { return reset_port_; }

private:
    std::uint8_t read_data();
    std::uint8_t read_status();
    /// True when the machine is to be reset.
    [[nodiscard]] bool write_data(std::uint8_t value);
    [[nodiscard]] bool write_command(std::uint8_t value);
    [[nodiscard]] bool write_parameter(std::uint8_t value);
    [[nodiscard]] bool write_system(std::uint8_t value);
    [[nodiscard]] bool write_reset(std::uint8_t value);
    void write_keyboard(std::uint8_t value);
    /// Bytes of the controller come before those of the keyboard.
    void answer(std::uint8_t value);
    void say(std::initializer_list<std::uint8_t> bytes);
    void update();
    ByteWindow make_port(std::function<std::uint8_t()> read, bool (KeyboardController::*write)(std::uint8_t));

    InterruptLine& line_;
    std::function<void()> reset_;
    std::mutex mutex_;
    std::array<std::uint8_t, queue_bytes> queue_{};
    std::size_t queue_count_ = 0;
    std::array<std::uint8_t, 32> memory_{};  ///< the controller's; byte 0 is its command byte
    std::uint8_t output_ = 0;                ///< what port 0x60 reads
    bool has_output_ = false;
    bool is_from_controller_ = false;
    std::uint8_t pending_command_ = 0;   ///< a controller's command that waits for its parameter
    std::uint8_t keyboard_command_ = 0;  ///< a keyboard's one
    std::uint8_t scan_code_set_ = 2;
    std::uint8_t last_said_ = 0;
    std::uint8_t output_port_ = 0x03;  ///< no reset, A20
    std::uint8_t system_bits_ = 0x02;
    std::uint8_t reset_bits_ = 0;
    bool was_command_ = false;
    ByteWindow data_port_;
    ByteWindow command_port_;
    ByteWindow system_port_;
    ByteWindow reset_port_;
};

}  // namespace guestmem::vmm
