// SPDX-License-Identifier: Apache-2.0
#include "guests/payload/lib/payload.hpp"

#include "guests/payload/lib/cpu.hpp"

namespace guestmem::payload {

namespace {
constinit std::uint64_t first_time_stamp = 0;
}

std::uint64_t time_stamp_at_start() { return first_time_stamp; }

extern "C" void payload_main();

extern "C" void payload_main() {
    first_time_stamp = read_time_stamp();
    open_console(option("out", "serial") == Text("debug") ? Output::debug : Output::serial);
    run();
    finish();
}

}  // namespace guestmem::payload

// What compilers call on their own.
extern "C" void* memset(void* to, int byte, std::size_t count);
extern "C" void* memcpy(void* to, const void* from, std::size_t count);

extern "C" void* memset(void* to, int byte, std::size_t count) {
    void* place = to;
    asm volatile("rep stosb" : "+D"(place), "+c"(count) : "a"(byte) : "memory");
    return to;
}

extern "C" void* memcpy(void* to, const void* from, std::size_t count) {
    void* place = to;
    asm volatile("rep movsb" : "+D"(place), "+S"(from), "+c"(count) : : "memory");
    return to;
}
