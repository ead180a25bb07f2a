// SPDX-License-Identifier: Apache-2.0
/// Fuzzes acpi_power.hpp: any accesses at any time, and power buttons.
///
/// Asserts: the timer is the clock's time in its own ticks; the interrupt is up only while an enabled event waits; the
/// machine is switched off by a write to the control ports alone.
#include <cstddef>
#include <cstdint>

#include "guestmem/base/check.hpp"
#include "guestmem/device/testing/manual_clock.hpp"
#include "guestmem/device/testing/recording_line.hpp"
#include "guestmem/vmm/devices/acpi_power.hpp"
#include "guestmem/vmm/devices/testing/byte_source.hpp"
#include "guestmem/vmm/devices/testing/ports.hpp"

namespace guestmem::vmm {
namespace {

/// A quarter of the color subcarrier's 14.318 MHz: 315/88 MHz.
constexpr std::uint64_t ticks_in_88_ms = 315'000;
constexpr std::uint64_t ns_in_88_ms = 88'000'000;

class Power {
public:
    void step(testing::ByteSource& input) {
        const std::uint8_t what = input.next();
        const std::size_t before = offs_;
        bool may_switch_off = false;
        switch (what & 7U) {
            case 0: clock_.advance(input.next32()); break;
            case 1: clock_.advance(std::uint64_t{input.next()} * 1'000'000'000); break;
            case 2: chip_.press_power_button(); break;
            case 3:
            case 4: testing::out8(chip_.event_ports(), what >> 4U & 7U, input.next()); break;
            case 5:
                may_switch_off = true;
                testing::out8(chip_.control_ports(), what >> 4U & 3U, input.next());
                break;
            case 6: testing::write_register(chip_.timer_ports(), what >> 4U & 7U, input.next32()); break;
            default: static_cast<void>(testing::in8(chip_.event_ports(), what >> 4U & 7U)); break;
        }
        GM_CHECK(offs_ == before || may_switch_off);
        check_timer();
        check_line();
    }

private:
    void check_timer() {
        const std::uint64_t now_ns = clock_.now_ns();
        const std::uint64_t rest = now_ns % ns_in_88_ms * ticks_in_88_ms / ns_in_88_ms;
        const std::uint64_t ticks = now_ns / ns_in_88_ms * ticks_in_88_ms + rest;
        GM_CHECK(testing::read_register<std::uint32_t>(chip_.timer_ports(), 0) ==
                 static_cast<std::uint32_t>(ticks));
    }
    void check_line() {
        const auto status = testing::read_register<std::uint16_t>(chip_.event_ports(), 0);
        const auto enabled = testing::read_register<std::uint16_t>(chip_.event_ports(), 2);
        GM_CHECK(line_.is_up() == ((status & enabled) != 0));
    }

    guestmem::testing::ManualClock clock_;
    guestmem::testing::RecordingLine line_;
    std::size_t offs_ = 0;
    AcpiPower chip_{clock_, line_, [this] { ++offs_; }};
};

void play(testing::ByteSource input) {
    Power power;
    while (!input.is_empty()) power.step(input);
}

}  // namespace
}  // namespace guestmem::vmm

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    guestmem::vmm::play(guestmem::vmm::testing::ByteSource{{data, size}});
    return 0;
}
