// SPDX-License-Identifier: Apache-2.0
/// Fuzzes rtc.hpp: any accesses at any times, under a wall clock that is set to anything.
///
/// Asserts: the time that was read twice at one moment is the same; reading register C clears it and takes the line
/// down; a line that is up has an event that is enabled; without reading C nothing rings twice.
#include <cstddef>
#include <cstdint>

#include "guestmem/base/check.hpp"
#include "guestmem/device/testing/manual_clock.hpp"
#include "guestmem/device/testing/recording_line.hpp"
#include "guestmem/vmm/devices/rtc.hpp"
#include "guestmem/vmm/devices/testing/byte_source.hpp"
#include "guestmem/vmm/devices/testing/ports.hpp"

namespace guestmem::vmm {
namespace {

constexpr std::size_t max_steps = 1000;

class Guest {
public:
    void step(testing::ByteSource& input) {
        const std::uint8_t what = input.next();
        switch (what & 7U) {
            case 0: (void)clock_.advance(std::uint64_t{input.next()} << (what >> 3U)); break;
            case 1:
                wall_ns_ = static_cast<std::int64_t>(std::uint64_t{input.next32()} << (what >> 3U));
                break;
            case 2: check_time(); break;
            case 3: check_events(); break;
            case 4: (void)testing::in8(rtc_.ports(), what >> 7U); break;
            case 5: rtc_.store(what, input.next()); break;
            default: {
                const std::uint8_t index = input.next();
                write((what & 0x80U) != 0 ? index : index % 16, input.next());
                break;
            }
        }
    }

private:
    std::uint8_t read(unsigned index) {
        testing::out8(rtc_.ports(), 0, index);
        return testing::in8(rtc_.ports(), 1);
    }
    void write(unsigned index, unsigned value) {
        testing::out8(rtc_.ports(), 0, index);
        testing::out8(rtc_.ports(), 1, value);
    }
    void check_time() {
        for (const unsigned index : {0U, 2U, 4U, 6U, 7U, 8U, 9U, 0x32U}) GM_CHECK(read(index) == read(index));
    }
    void check_events() {
        const bool was_up = line_.is_up();
        const std::uint8_t enabled = read(0x0b);
        const std::uint8_t events = read(0x0c);
        GM_CHECK(((events & enabled & 0x70U) != 0) == ((events & 0x80U) != 0));
        GM_CHECK(!was_up || (events & 0x80U) != 0);
        GM_CHECK(!line_.is_up());
        GM_CHECK(read(0x0c) == 0);
        const std::size_t raised = line_.count_raised();
        (void)clock_.advance(1'000'000'000);
        GM_CHECK(line_.count_raised() <= raised + 1);
    }

    guestmem::testing::ManualClock clock_;
    guestmem::testing::RecordingLine line_;
    std::int64_t wall_ns_ = 0;
    Rtc rtc_{
        clock_,
        [this] { return static_cast<std::int64_t>(static_cast<std::uint64_t>(wall_ns_) + clock_.now_ns()); },
        line_};
};

void play(testing::ByteSource input) {
    Guest guest;
    for (std::size_t step = 0; step < max_steps && !input.is_empty(); ++step) guest.step(input);
}

}  // namespace
}  // namespace guestmem::vmm

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    guestmem::vmm::play(guestmem::vmm::testing::ByteSource{{data, size}});
    return 0;
}
