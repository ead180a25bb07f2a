// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/byte_window.hpp"

#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <utility>
#include <vector>

namespace guestmem::vmm {
namespace {

struct Chip {
    std::vector<std::pair<std::uint64_t, std::uint8_t>> writes;
    ByteWindow window{
        3, [](std::uint64_t offset) { return static_cast<std::uint8_t>(0x10 + offset); },
        [this](std::uint64_t offset, std::uint8_t value) { writes.emplace_back(offset, value); }};
};

TEST(ByteWindow, AWideReadIsBytesInAscendingOrderAndOnesBeyondTheLast) {
    Chip chip;
    std::array<std::byte, 4> data{};
    data.fill(std::byte{0xff});
    chip.window.read(1, data);
    EXPECT_EQ(data, (std::array{std::byte{0x11}, std::byte{0x12}, std::byte{0xff}, std::byte{0xff}}));
}

TEST(ByteWindow, AWideWriteIsBytesInAscendingOrderAndEndsAtTheLast) {
    Chip chip;
    const std::array data{std::byte{1}, std::byte{2}, std::byte{3}, std::byte{4}};
    chip.window.write(1, data);
    const std::vector<std::pair<std::uint64_t, std::uint8_t>> expected{{1, 1}, {2, 2}};
    EXPECT_EQ(chip.writes, expected);
}

TEST(ByteWindow, AnOffsetFarBeyondIsNoRegister) {
    Chip chip;
    std::array data{std::byte{0xff}, std::byte{0xff}};
    for (const std::uint64_t offset : {std::uint64_t{3}, std::numeric_limits<std::uint64_t>::max()}) {
        chip.window.read(offset, data);
        chip.window.write(offset, data);
        EXPECT_EQ(data, (std::array{std::byte{0xff}, std::byte{0xff}}));
    }
    EXPECT_TRUE(chip.writes.empty());
}

TEST(ByteWindow, AWindowOnABusKeepsItsChip) {
    auto chip = std::make_shared<Chip>();
    const std::weak_ptr<Chip> watched = chip;
    auto window = window_of(chip, chip->window);
    chip.reset();
    EXPECT_FALSE(watched.expired());
    window.reset();
    EXPECT_TRUE(watched.expired());
}

}  // namespace
}  // namespace guestmem::vmm
