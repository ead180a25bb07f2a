// SPDX-License-Identifier: Apache-2.0
/// Fuzzes serial8250.hpp: any accesses, and a host that sends whenever it likes.
///
/// Asserts: the line is up exactly while the identification names a reason; what receive() took comes out in order, as
/// long as nothing clears or loops; it tells of room only after it refused; no more leaves than was written.
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>

#include "guestmem/base/check.hpp"
#include "guestmem/device/testing/recording_line.hpp"
#include "guestmem/vmm/devices/serial8250.hpp"
#include "guestmem/vmm/devices/testing/byte_source.hpp"
#include "guestmem/vmm/devices/testing/ports.hpp"

namespace guestmem::vmm {
namespace {

class Wire {
public:
    void step(testing::ByteSource& input) {
        const std::uint8_t what = input.next();
        const std::uint64_t offset = what >> 4U & 7U;
        switch (what & 3U) {
            case 0: offer(input.next() % 40); break;
            case 1: read(offset); break;
            default: write(offset, input.next()); break;
        }
        const bool was_up = line_.is_up();
        GM_CHECK(was_up == ((testing::in8(chip_.ports(), 2) & 1U) == 0));
    }

private:
    void offer(std::size_t count) {
        std::array<std::byte, 40> bytes{};
        for (std::size_t i = 0; i < count; ++i) bytes.at(i) = std::byte{++last_byte_};
        const std::size_t taken = chip_.receive(std::span{bytes}.first(count));
        GM_CHECK(taken <= count && taken <= Serial8250::fifo_bytes);
        for (std::size_t i = 0; i < taken; ++i)
            expected_.push_back(std::to_integer<std::uint8_t>(bytes.at(i)));
        has_refused_ = has_refused_ || taken < count;
    }
    void read(std::uint64_t offset) {
        const bool is_data = offset == 0 && (testing::in8(chip_.ports(), 3) & 0x80U) == 0;
        const bool is_ready = is_data && (testing::in8(chip_.ports(), 5) & 1U) != 0;
        const std::uint8_t value = testing::in8(chip_.ports(), offset);
        if (!is_ready || is_disturbed_) return;
        GM_CHECK(!expected_.empty() && expected_.front() == value);
        expected_.pop_front();
    }
    void write(std::uint64_t offset, std::uint8_t value) {
        // Clearing, turning the FIFO and loopback change what waits.
        if (offset == 2 || (offset == 4 && (value & 0x10U) != 0)) is_disturbed_ = true;
        if (offset == 0) ++written_;
        testing::out8(chip_.ports(), offset, value);
        GM_CHECK(sent_ <= written_);
    }
    void take_notice() {
        GM_CHECK(has_refused_);
        has_refused_ = false;
    }

    guestmem::testing::RecordingLine line_;
    std::deque<std::uint8_t> expected_;
    std::uint8_t last_byte_ = 0;
    std::size_t written_ = 0;
    std::size_t sent_ = 0;
    bool has_refused_ = false;
    bool is_disturbed_ = false;
    Serial8250 chip_{
        line_, {.send = [this](std::byte /*byte*/) { ++sent_; }, .has_room = [this] { take_notice(); }}};
};

void play(testing::ByteSource input) {
    Wire wire;
    while (!input.is_empty()) wire.step(input);
}

}  // namespace
}  // namespace guestmem::vmm

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    guestmem::vmm::play(guestmem::vmm::testing::ByteSource{{data, size}});
    return 0;
}
