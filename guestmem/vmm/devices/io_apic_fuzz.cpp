// SPDX-License-Identifier: Apache-2.0
/// Fuzzes io_apic.hpp: any accesses, lines and ends of interrupts.
///
/// Asserts: routes are told when they change and no kick goes without one (testing/recording_output.hpp); a masked
/// entry has a route only while it is served, an unmasked one the message of its bits; read-only and reserved bits
/// stay; what is served is a level; once all lines are down and all interrupts ended, nothing is kicked.
#include <cstddef>
#include <cstdint>
#include <span>

#include "guestmem/base/check.hpp"
#include "guestmem/vmm/devices/io_apic.hpp"
#include "guestmem/vmm/devices/testing/byte_source.hpp"
#include "guestmem/vmm/devices/testing/ports.hpp"
#include "guestmem/vmm/devices/testing/recording_output.hpp"

namespace guestmem::vmm {
namespace {

using testing::read_register;
using testing::write_register;

std::uint64_t read_entry(IoApic& chip, std::uint32_t pin) {
    const auto before = read_register<std::uint32_t>(chip, 0x00);
    std::uint64_t entry = 0;
    for (std::uint32_t half = 0; half < 2; ++half) {
        write_register(chip, 0x00, 0x10 + 2 * pin + half);
        entry |= std::uint64_t{read_register<std::uint32_t>(chip, 0x10)} << (32 * half);
    }
    write_register(chip, 0x00, before);
    return entry;
}

void check_pins(IoApic& chip, const testing::RecordingOutput& output) {
    for (std::uint32_t pin = 0; pin < IoApic::pin_count; ++pin) {
        const std::uint64_t entry = read_entry(chip, pin);
        GM_CHECK((entry & 0x00ff'ffff'fffe'1000ULL) == 0);
        const bool is_masked = (entry & 0x1'0000U) != 0;
        const bool is_served = (entry & 0x4000U) != 0;
        GM_CHECK(!is_served || (entry & 0x8000U) != 0);
        const auto& route = output.routes.at(pin);
        if (is_masked) {
            GM_CHECK(!route || is_served);
        } else if (route) {
            GM_CHECK((route->data & 0x7ffU) == (entry & 0x7ffU));
            GM_CHECK((route->address & 0xff000U) >> 12U == entry >> 56U);
        }
    }
}

void play(testing::ByteSource input) {
    testing::RecordingOutput output;
    IoApic chip{output};
    while (!input.is_empty()) {
        const std::uint8_t what = input.next();
        const std::uint64_t offset = std::uint64_t{what & 0x70U};
        switch (what & 7U) {
            case 0: chip.line(input.next() % IoApic::pin_count).set(true); break;
            case 1: chip.line(input.next() % IoApic::pin_count).set(false); break;
            case 2: chip.end_of_interrupt(input.next()); break;
            case 3: write_register<std::uint8_t>(chip, 0x00, input.next()); break;
            case 4: write_register<std::uint32_t>(chip, 0x10, input.next32()); break;
            case 5: write_register<std::uint16_t>(chip, offset | 2, input.next()); break;
            case 6: (void)read_register<std::uint64_t>(chip, offset); break;
            default: write_register<std::uint64_t>(chip, offset, input.next32()); break;
        }
    }
    check_pins(chip, output);
    for (std::uint32_t pin = 0; pin < IoApic::pin_count; ++pin) chip.line(pin).set(false);
    const std::size_t count = output.delivered.size();
    for (unsigned vector = 0; vector < 256; ++vector)
        chip.end_of_interrupt(static_cast<std::uint8_t>(vector));
    GM_CHECK(output.delivered.size() == count);
    for (std::uint32_t pin = 0; pin < IoApic::pin_count; ++pin)
        GM_CHECK((read_entry(chip, pin) & 0x4000U) == 0);
    check_pins(chip, output);
}

}  // namespace
}  // namespace guestmem::vmm

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    guestmem::vmm::play(guestmem::vmm::testing::ByteSource{{data, size}});
    return 0;
}
