// SPDX-License-Identifier: Apache-2.0
#pragma once

// Text, and the way it leaves the guest: the serial port 0x3f8 or the debug port 0xe9.
//
// Concepts: print_line(a, b, c) prints its parts and the end of the line; a number is decimal, Hex{n} is
//   hexadecimal with 0x.
// Cost: two exits per byte on the serial port, one on the debug port.
// Example: print_line("slot ", slot, " at ", Hex{address});

#include <cstddef>
#include <cstdint>

namespace guestmem::payload {

struct Text {
    const char* data = "";
    std::size_t size = 0;

    constexpr Text() = default;
    constexpr Text(const char* first, std::size_t count) : data(first), size(count) {}
    template <std::size_t size_with_nul>
    // NOLINTNEXTLINE(google-explicit-constructor): a literal is a text
    constexpr Text(const char (&literal)[size_with_nul]) : data(literal), size(size_with_nul - 1) {}

    friend constexpr bool operator==(Text one, Text other) {
        if (one.size != other.size) return false;
        for (std::size_t i = 0; i < one.size; ++i)
            if (one.data[i] != other.data[i]) return false;
        return true;
    }
};

struct Hex {
    std::uint64_t value;
};

enum class Output { serial, debug };

void open_console(Output output);
// Sets the serial port up, whatever state somebody left it in: 8 bits, no interrupts, no loopback.
void reset_console();

void print(Text text);
void print(std::uint64_t number);
void print(Hex number);

template <typename... Parts>
void print_line(Parts... parts) {
    (print(parts), ...);
    print(Text("\n"));
}

}  // namespace guestmem::payload
