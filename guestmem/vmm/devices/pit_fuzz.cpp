// SPDX-License-Identifier: Apache-2.0
/// Fuzzes pit.hpp: any accesses at any times.
///
/// Asserts: a timer that is looked at in between answers as one that is not; alarms are no more than its limit, and
/// never behind the clock after they rang.
#include <cstddef>
#include <cstdint>

#include "guestmem/base/check.hpp"
#include "guestmem/device/testing/manual_clock.hpp"
#include "guestmem/device/testing/recording_line.hpp"
#include "guestmem/vmm/devices/pit.hpp"
#include "guestmem/vmm/devices/testing/byte_source.hpp"
#include "guestmem/vmm/devices/testing/ports.hpp"

namespace guestmem::vmm {
namespace {

constexpr std::size_t max_steps = 400;

struct Machine {
    guestmem::testing::ManualClock clock;
    guestmem::testing::RecordingLine line;
    Pit pit{clock, line};

    void advance(std::uint64_t by_ns) {
        const std::size_t rings = clock.advance(by_ns);
        GM_CHECK(rings <= by_ns / Pit::min_ring_ns + 2);
        GM_CHECK(!clock.next_ns() || *clock.next_ns() >= clock.now_ns());
    }
};

void play(testing::ByteSource input) {
    Machine watched;
    Machine quiet;
    for (std::size_t step = 0; step < max_steps && !input.is_empty(); ++step) {
        const std::uint8_t what = input.next();
        const std::uint64_t offset = what >> 4U & 3U;
        switch (what & 7U) {
            case 0:
            case 1: {
                const std::uint64_t by_ns = std::uint64_t{input.next()} << (what >> 3U & 15U);
                for (int part = 0; part < 4; ++part) {
                    watched.advance(by_ns);
                    (void)testing::in8(watched.pit.control_port());
                }
                quiet.advance(4 * by_ns);
                break;
            }
            case 2:
            case 3:
                GM_CHECK(testing::in8(watched.pit.counter_ports(), offset) ==
                         testing::in8(quiet.pit.counter_ports(), offset));
                break;
            case 4:
                GM_CHECK(testing::in8(watched.pit.control_port()) == testing::in8(quiet.pit.control_port()));
                break;
            default: {
                const std::uint8_t value = input.next();
                const bool is_control = (what & 7U) == 5;
                for (Machine* machine : {&watched, &quiet}) {
                    if (is_control) testing::out8(machine->pit.control_port(), 0, value);
                    if (!is_control) testing::out8(machine->pit.counter_ports(), offset, value);
                }
                break;
            }
        }
    }
}

}  // namespace
}  // namespace guestmem::vmm

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    guestmem::vmm::play(guestmem::vmm::testing::ByteSource{{data, size}});
    return 0;
}
