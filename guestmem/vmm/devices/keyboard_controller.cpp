// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/keyboard_controller.hpp"

#include <algorithm>
#include <utility>

namespace guestmem::vmm {
namespace {

// Status, port 0x64.
constexpr std::uint8_t status_output = 0x01;
constexpr std::uint8_t status_system = 0x04;
constexpr std::uint8_t status_command = 0x08;
constexpr std::uint8_t status_unlocked = 0x10;

// The command byte.
constexpr std::uint8_t control_interrupt = 0x01;
constexpr std::uint8_t control_system = 0x04;
constexpr std::uint8_t control_keyboard_off = 0x10;
constexpr std::uint8_t control_auxiliary_off = 0x20;
constexpr std::uint8_t control_translate = 0x40;

// Commands to the controller.
constexpr std::uint8_t read_memory = 0x20;   // to 0x3f
constexpr std::uint8_t write_memory = 0x60;  // to 0x7f
constexpr std::uint8_t auxiliary_off = 0xa7;
constexpr std::uint8_t auxiliary_on = 0xa8;
constexpr std::uint8_t test_auxiliary = 0xa9;
constexpr std::uint8_t test_controller = 0xaa;
constexpr std::uint8_t test_keyboard = 0xab;
constexpr std::uint8_t keyboard_off = 0xad;
constexpr std::uint8_t keyboard_on = 0xae;
constexpr std::uint8_t read_input_port = 0xc0;
constexpr std::uint8_t read_output_port = 0xd0;
constexpr std::uint8_t write_output_port = 0xd1;
constexpr std::uint8_t loop_keyboard = 0xd2;
constexpr std::uint8_t loop_auxiliary = 0xd3;
constexpr std::uint8_t write_auxiliary = 0xd4;
constexpr std::uint8_t pulse_output = 0xf0;  // to 0xff

constexpr std::uint8_t test_passed = 0x55;
constexpr std::uint8_t line_good = 0x00;
constexpr std::uint8_t clock_stuck_low = 0x01;
constexpr std::uint8_t input_port_bits = 0x80;  // not locked

// The keyboard's words.
constexpr std::uint8_t acknowledged = 0xfa;
constexpr std::uint8_t resend = 0xfe;
constexpr std::uint8_t passed = 0xaa;

constexpr std::uint8_t output_not_reset = 0x01;
constexpr std::uint8_t system_reset = 0x01;
constexpr std::uint8_t reset_now = 0x04;
constexpr std::uint8_t reset_writable = 0x0e;

}  // namespace

ByteWindow KeyboardController::make_port(std::function<std::uint8_t()> read,
                                         bool (KeyboardController::*write)(std::uint8_t)) {
    return ByteWindow{1,
                      [this, read = std::move(read)](std::uint64_t /*offset*/) {
                          const std::scoped_lock lock{mutex_};
                          return read();
                      },
                      [this, write](std::uint64_t /*offset*/, std::uint8_t value) {
                          std::unique_lock lock{mutex_};
                          const bool is_reset = (this->*write)(value);
                          update();
                          lock.unlock();
                          if (is_reset && reset_) reset_();
                      }};
}

KeyboardController::KeyboardController(InterruptLine& line, std::function<void()> reset)
    : line_(line),
      reset_(std::move(reset)),
      data_port_(make_port([this] { return read_data(); }, &KeyboardController::write_data)),
      command_port_(make_port([this] { return read_status(); }, &KeyboardController::write_command)),
      system_port_(make_port([this] { return system_bits_; }, &KeyboardController::write_system)),
      reset_port_(make_port([this] { return reset_bits_; }, &KeyboardController::write_reset)) {
    // As firmware leaves it: tested, translating, with the keyboard's interrupt.
    memory_.front() = control_translate | control_auxiliary_off | control_system | control_interrupt;
}

void KeyboardController::update() {
    if (!has_output_ && queue_count_ != 0 && (memory_.front() & control_keyboard_off) == 0) {
        output_ = queue_.front();
        std::shift_left(queue_.begin(), queue_.end(), 1);
        --queue_count_;
        has_output_ = true;
        is_from_controller_ = false;
    }
    line_.set(has_output_ && (memory_.front() & control_interrupt) != 0);
}

std::uint8_t KeyboardController::read_data() {
    const std::uint8_t value = output_;
    has_output_ = false;
    line_.set(false);
    update();
    return value;
}

std::uint8_t KeyboardController::read_status() {
    std::uint8_t status = status_unlocked;
    if (has_output_) status |= status_output;
    if ((memory_.front() & control_system) != 0) status |= status_system;
    if (was_command_) status |= status_command;
    return status;
}

void KeyboardController::answer(std::uint8_t value) {
    // A byte of the keyboard's that was not read yet waits on.
    if (has_output_ && !is_from_controller_ && queue_count_ < queue_bytes) {
        std::shift_right(queue_.begin(), queue_.end(), 1);
        queue_.front() = output_;
        ++queue_count_;
    }
    line_.set(false);
    output_ = value;
    has_output_ = true;
    is_from_controller_ = true;
}

void KeyboardController::say(std::initializer_list<std::uint8_t> bytes) {
    for (const std::uint8_t byte : bytes) {
        if (queue_count_ == queue_bytes) return;
        queue_.at(queue_count_++) = byte;
        last_said_ = byte;
    }
}

bool KeyboardController::write_command(std::uint8_t value) {
    was_command_ = true;
    pending_command_ = 0;
    std::uint8_t& control = memory_.front();
    if (value >= read_memory && value < read_memory + memory_.size()) {
        answer(memory_.at(value - read_memory));
        return false;
    }
    if (value >= write_memory && value < write_memory + memory_.size()) {
        pending_command_ = value;
        return false;
    }
    if (value >= pulse_output) return (value & output_not_reset) == 0;
    switch (value) {
        case auxiliary_off: control |= control_auxiliary_off; break;
        case auxiliary_on: control &= static_cast<std::uint8_t>(~control_auxiliary_off); break;
        case test_auxiliary: answer(clock_stuck_low); break;
        case test_controller:
            control |= control_system;
            answer(test_passed);
            break;
        case test_keyboard: answer(line_good); break;
        case keyboard_off: control |= control_keyboard_off; break;
        case keyboard_on: control &= static_cast<std::uint8_t>(~control_keyboard_off); break;
        case read_input_port: answer(input_port_bits); break;
        case read_output_port:
            answer(output_port_ | (has_output_ ? std::uint8_t{0x10} : std::uint8_t{0}));
            break;
        case write_output_port:
        case loop_keyboard:
        case loop_auxiliary:
        case write_auxiliary: pending_command_ = value; break;
        default: break;
    }
    return false;
}

bool KeyboardController::write_data(std::uint8_t value) {
    was_command_ = false;
    if (pending_command_ != 0) return write_parameter(value);
    // Sending wakes the keyboard's line.
    memory_.front() &= static_cast<std::uint8_t>(~control_keyboard_off);
    write_keyboard(value);
    return false;
}

bool KeyboardController::write_parameter(std::uint8_t value) {
    const std::uint8_t command = std::exchange(pending_command_, std::uint8_t{0});
    if (command >= write_memory && command < write_memory + memory_.size()) {
        memory_.at(command - write_memory) = value;
        return false;
    }
    switch (command) {
        case write_output_port: output_port_ = value & 0x03U; return (value & output_not_reset) == 0;
        case loop_keyboard:
        case loop_auxiliary: answer(value); return false;
        default: return false;  // to the auxiliary device: nobody is there to answer
    }
}

void KeyboardController::write_keyboard(std::uint8_t value) {
    const std::uint8_t command = std::exchange(keyboard_command_, std::uint8_t{0});
    // A byte below 0xed is no command: the parameter of the one before, if that takes one.
    if (value < 0xedU && command != 0) {
        say({acknowledged});
        if (command != 0xf0) return;
        if (value == 0) say({scan_code_set_});
        if (value >= 1 && value <= 3) scan_code_set_ = value;
        return;
    }
    switch (value) {
        case 0xed:  // lights
        case 0xf0:  // scan code set
        case 0xf3:  // repeat rate
            keyboard_command_ = value;
            say({acknowledged});
            break;
        case 0xee: say({0xee}); break;  // echo
        case 0xf2:                      // identity; translated like any scan code
            say({acknowledged, 0xab,
                 (memory_.front() & control_translate) != 0 ? std::uint8_t{0x41} : std::uint8_t{0x83}});
            break;
        case 0xf4:  // on
        case 0xf5:  // off
            say({acknowledged});
            break;
        case 0xf6:  // defaults
            scan_code_set_ = 2;
            say({acknowledged});
            break;
        case 0xfe: say({last_said_}); break;
        case 0xff:
            scan_code_set_ = 2;
            queue_count_ = 0;
            say({acknowledged, passed});
            break;
        default: say({resend}); break;
    }
}

bool KeyboardController::write_system(std::uint8_t value) {
    const bool is_rising = (value & ~unsigned{system_bits_} & system_reset) != 0;
    system_bits_ = value & 0x03U;
    return is_rising;
}

bool KeyboardController::write_reset(std::uint8_t value) {
    const bool is_rising = (value & ~unsigned{reset_bits_} & reset_now) != 0;
    reset_bits_ = value & reset_writable;
    return is_rising;
}

}  // namespace guestmem::vmm
