// SPDX-License-Identifier: Apache-2.0
// Says back what comes in on the serial port, until a q: a machine that lives as long as it is told to.
//
// Options: `timeout` in ms (60000), `flood` (0: how many lines are printed first, whoever reads them).

#include "guests/payload/lib/interrupts.hpp"
#include "guests/payload/lib/payload.hpp"

namespace guestmem::payload {

namespace {

constexpr std::uint16_t serial_port = 0x3f8;
constexpr std::uint8_t has_byte = 0x01;

}  // namespace

void run() {
    start_interrupts();
    const std::uint64_t flood = number_option("flood", 0);
    const std::uint64_t timeout_ms = number_option("timeout", 60000);
    print_line(Text("echo listens"));
    for (std::uint64_t i = 0; i < flood; ++i) print_line(Text("flood "), i);
    char byte = 0;
    while (byte != 'q') {
        if (!wait_until([] { return (in8(serial_port + 5) & has_byte) != 0; }, timeout_ms)) break;
        byte = static_cast<char>(in8(serial_port));
        print_line(Text("heard "), Text(&byte, 1));
    }
    check("echo: a q ends it", byte == 'q');
}

}  // namespace guestmem::payload
