// SPDX-License-Identifier: Apache-2.0
/// Fuzzes pic.hpp: any accesses and lines.
///
/// Asserts: INTR is what is_requesting() says; an acknowledge without a request is the spurious 7; a poll that was not
/// answered changes nothing; a chip of which everything is masked asks for nothing.
#include <cstddef>
#include <cstdint>

#include "guestmem/base/check.hpp"
#include "guestmem/device/testing/recording_line.hpp"
#include "guestmem/vmm/devices/pic.hpp"
#include "guestmem/vmm/devices/testing/byte_source.hpp"
#include "guestmem/vmm/devices/testing/ports.hpp"

namespace guestmem::vmm {
namespace {

void play(testing::ByteSource input) {
    guestmem::testing::RecordingLine intr;
    Pic pic{intr};
    while (!input.is_empty()) {
        const std::uint8_t what = input.next();
        IoDevice& chip = (what & 0x80U) != 0 ? pic.slave_ports() : pic.master_ports();
        const std::uint64_t offset = what >> 6U & 1U;
        switch (what & 7U) {
            case 0: pic.line(input.next() % Pic::input_count).pulse(); break;
            case 1: pic.line(input.next() % Pic::input_count).set(true); break;
            case 2: pic.line(input.next() % Pic::input_count).set(false); break;
            case 3: {
                const bool is_real = pic.is_requesting();
                const std::uint8_t vector = pic.acknowledge();
                GM_CHECK(is_real || (vector & 7U) == 7);
                break;
            }
            case 4: (void)testing::in8(chip, offset); break;
            case 5: testing::write_register<std::uint16_t>(pic.elcr_ports(), 0, input.next()); break;
            default: testing::out8(chip, offset, input.next()); break;
        }
        GM_CHECK(intr.is_up() == pic.is_requesting());
    }
    // Out of any initialization, everything masked.
    for (IoDevice* chip : {&pic.master_ports(), &pic.slave_ports()}) {
        for (int word = 0; word < 3; ++word) testing::out8(*chip, 1, 0x00);
        testing::out8(*chip, 1, 0xff);
        testing::out8(*chip, 0, 0x0c);
        GM_CHECK(testing::in8(*chip) == 0);
        GM_CHECK(testing::in8(*chip, 1) == 0xff);
    }
    GM_CHECK(!intr.is_up());
}

}  // namespace
}  // namespace guestmem::vmm

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    guestmem::vmm::play(guestmem::vmm::testing::ByteSource{{data, size}});
    return 0;
}
