// SPDX-License-Identifier: Apache-2.0
#include "guests/payload/lib/console.hpp"

#include "guests/payload/lib/cpu.hpp"

namespace guestmem::payload {

namespace {

constexpr std::uint16_t serial_port = 0x3f8;
constexpr std::uint16_t debug_port = 0xe9;
constexpr std::uint8_t can_take_byte = 0x20;
// A port without a device reads as all ones and so is ready; one that is never ready loses the byte.
constexpr int max_polls = 100000;

constinit Output output = Output::serial;

void print_byte(char byte) {
    if (output == Output::debug) {
        out8(debug_port, static_cast<std::uint8_t>(byte));
        return;
    }
    for (int i = 0; i < max_polls && !(in8(serial_port + 5) & can_take_byte); ++i) relax();
    out8(serial_port, static_cast<std::uint8_t>(byte));
}

void print_digits(std::uint64_t number, unsigned base) {
    char digits[20];
    std::size_t count = 0;
    do {
        digits[count++] = "0123456789abcdef"[number % base];
        number /= base;
    } while (number);
    while (count) print_byte(digits[--count]);
}

}  // namespace

void open_console(Output chosen) {
    output = chosen;
    if (chosen == Output::serial) reset_console();
}

void reset_console() {
    out8(serial_port + 3, 0x03);  // 8 bits, no parity; the divisor is out of sight
    out8(serial_port + 1, 0x00);  // no interrupts
    out8(serial_port + 4, 0x03);  // ready, no loopback
}

void print(Text text) {
    for (std::size_t i = 0; i < text.size; ++i) print_byte(text.data[i]);
}

void print(std::uint64_t number) { print_digits(number, 10); }

void print(Hex number) {
    print(Text("0x"));
    print_digits(number.value, 16);
}

}  // namespace guestmem::payload
