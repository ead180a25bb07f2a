// SPDX-License-Identifier: Apache-2.0
#include "guests/payload/lib/report.hpp"

#include "guests/payload/lib/cpu.hpp"

namespace guestmem::payload {

namespace {

constexpr std::uint16_t exit_port = 0xf4;

constinit std::uint64_t checks = 0;
constinit std::uint64_t failures = 0;

bool passed(Text name) {
    ++checks;
    print_line(Text("ok "), name);
    return true;
}

void count_failure() {
    ++checks;
    ++failures;
}

}  // namespace

bool check(Text name, bool is_so) {
    if (is_so) return passed(name);
    count_failure();
    print_line(Text("fail "), name, Text(": expected true got false"));
    return false;
}

bool check_equal(Text name, std::uint64_t expected, std::uint64_t got) {
    if (expected == got) return passed(name);
    count_failure();
    print_line(Text("fail "), name, Text(": expected "), Hex{expected}, Text(" got "), Hex{got});
    return false;
}

bool check_in(Text name, std::uint64_t low, std::uint64_t high, std::uint64_t got) {
    if (low <= got && got <= high) return passed(name);
    count_failure();
    print_line(Text("fail "), name, Text(": expected "), Hex{low}, Text(".."), Hex{high}, Text(" got "),
               Hex{got});
    return false;
}

void leave(std::uint8_t value) {
    disable_interrupts();
    out8(exit_port, value);
    for (;;) asm volatile("cli\n\thlt" : : : "memory");
}

void finish() {
    print_line(Text("done "), checks);
    leave(failures ? exit_failed : exit_passed);
}

// Called by the exception stubs.
struct FaultFrame {
    std::uint64_t vector;
    std::uint64_t error;
    std::uint64_t rip;
};

extern "C" [[noreturn]] void payload_fault(const FaultFrame* frame);

extern "C" void payload_fault(const FaultFrame* frame) {
    std::uint64_t cr2 = 0;
    asm volatile("mov %%cr2, %0" : "=r"(cr2));
    print_line(Text("\nfault "), frame->vector, Text(" error "), Hex{frame->error}, Text(" at "),
               Hex{frame->rip}, Text(" address "), Hex{cr2});
    leave(exit_fault);
}

}  // namespace guestmem::payload
