// SPDX-License-Identifier: Apache-2.0
/// Fuzzes keyboard_controller.hpp: any bytes at any of its ports.
///
/// Asserts: the line is up only while a byte waits that came from the keyboard, and a byte waits whenever the
/// status says so; a byte that is not read stays; a reset comes from a write alone, and at most once from each.
#include <cstddef>
#include <cstdint>

#include "guestmem/base/check.hpp"
#include "guestmem/device/testing/recording_line.hpp"
#include "guestmem/vmm/devices/keyboard_controller.hpp"
#include "guestmem/vmm/devices/testing/byte_source.hpp"
#include "guestmem/vmm/devices/testing/ports.hpp"

namespace guestmem::vmm {
namespace {

constexpr unsigned output_full = 1;

class Keyboard {
public:
    void step(testing::ByteSource& input) {
        const std::uint8_t what = input.next();
        IoDevice& port = port_of(what & 3U);
        const std::size_t before = resets_;
        if ((what & 0x80U) == 0) {
            testing::out8(port, 0, input.next());
            GM_CHECK(resets_ <= before + 1);
        } else {
            static_cast<void>(testing::in8(port));
            GM_CHECK(resets_ == before);
        }
        const bool is_full = (status() & output_full) != 0;
        GM_CHECK(!line_.is_up() || is_full);
        GM_CHECK(status() == status());
    }

private:
    std::uint8_t status() { return testing::in8(chip_.command_port()); }
    IoDevice& port_of(unsigned which) {
        switch (which) {
            case 0: return chip_.data_port();
            case 1: return chip_.command_port();
            case 2: return chip_.system_port();
            default: return chip_.reset_port();
        }
    }

    guestmem::testing::RecordingLine line_;
    std::size_t resets_ = 0;
    KeyboardController chip_{line_, [this] { ++resets_; }};
};

void play(testing::ByteSource input) {
    Keyboard keyboard;
    while (!input.is_empty()) keyboard.step(input);
}

}  // namespace
}  // namespace guestmem::vmm

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    guestmem::vmm::play(guestmem::vmm::testing::ByteSource{{data, size}});
    return 0;
}
