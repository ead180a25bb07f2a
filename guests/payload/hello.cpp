// SPDX-License-Identifier: Apache-2.0
// The least that a machine can do: a byte on the debug port as the very first act, then a line, then the end.
// Start-up is measured with it: the first instructions are the byte.

#include "guests/payload/lib/payload.hpp"

asm(R"(
    .text
    .code32
    .globl payload_entry
payload_entry:
    movb $0x48, %al             # H
    outb %al, $0xe9
    jmp payload_start
    .code64
)");

namespace guestmem::payload {

void run() {
    print_line(Text("hello from a payload"));
    if (command_line().size) print_line(Text("options: "), command_line());
    check("long mode and the console work", true);
}

}  // namespace guestmem::payload
