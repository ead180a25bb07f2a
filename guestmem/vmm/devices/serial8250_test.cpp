// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/serial8250.hpp"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <thread>

#include "guestmem/device/testing/recording_line.hpp"
#include "guestmem/vmm/devices/testing/ports.hpp"

namespace guestmem::vmm {
namespace {

using guestmem::testing::RecordingLine;
using testing::in8;
using testing::out8;

class Serial8250Test : public ::testing::Test {
protected:
    RecordingLine line;
    std::string sent;
    int room_notices = 0;
    Serial8250 chip{line,
                    {.send = [this](std::byte byte) { sent += static_cast<char>(byte); },
                     .has_room = [this] { ++room_notices; }}};
    IoDevice& ports = chip.ports();

    std::size_t receive(std::string_view text) { return chip.receive(std::as_bytes(std::span{text})); }
    std::uint8_t read(unsigned offset) { return in8(ports, offset); }
    void write(unsigned offset, unsigned value) { out8(ports, offset, value); }
};

TEST_F(Serial8250Test, IsFoundAsA16550AByLinux) {
    // autoconfig() of the 8250 driver.
    write(1, 0);
    EXPECT_EQ(read(1) & 0x0f, 0x00);
    write(1, 0xff);
    EXPECT_EQ(read(1), 0x0f);
    write(1, 0);
    write(4, 0x1a);  // loopback, OUT2 and RTS
    EXPECT_EQ(read(6) & 0xf0, 0x90);
    write(4, 0);
    write(2, 1);
    EXPECT_EQ(read(2) >> 6U, 3);
    write(3, 0xbf);
    write(2, 0);
    write(3, 0);
    for (const unsigned value : {0x55U, 0xaaU}) {
        write(7, value);
        EXPECT_EQ(read(7), value);
    }
}

TEST_F(Serial8250Test, ABytesWayOut) {
    EXPECT_EQ(read(5), 0x60);
    write(0, 'h');
    write(0, 'i');
    EXPECT_EQ(sent, "hi");
    EXPECT_EQ(read(5), 0x60);
    EXPECT_FALSE(line.is_up());
}

TEST_F(Serial8250Test, TheDivisorHidesDataAndEnables) {
    write(3, 0x83);
    write(0, 0x01);
    write(1, 0x02);
    EXPECT_EQ(read(0), 0x01);
    EXPECT_EQ(read(1), 0x02);
    write(3, 0x03);
    EXPECT_EQ(sent, "");
    EXPECT_EQ(read(1), 0x00);
}

TEST_F(Serial8250Test, AnEmptyTransmitterInterruptsOncePerReason) {
    write(1, 0x02);
    EXPECT_TRUE(line.is_up());
    EXPECT_EQ(read(2), 0x02);
    EXPECT_FALSE(line.is_up()) << "reading the identification ends it";
    EXPECT_EQ(read(2), 0x01);
    write(0, 'x');
    EXPECT_EQ(read(2), 0x02);
    write(1, 0x02);
    EXPECT_FALSE(line.is_up()) << "it was enabled already";
}

TEST_F(Serial8250Test, WithoutFifoOneByteWaits) {
    write(1, 0x01);
    EXPECT_EQ(receive("ab"), 1U);
    EXPECT_EQ(read(2), 0x04);
    EXPECT_EQ(read(5), 0x61);
    EXPECT_EQ(room_notices, 0);
    EXPECT_EQ(read(0), 'a');
    EXPECT_EQ(room_notices, 1);
    EXPECT_FALSE(line.is_up());
    EXPECT_EQ(read(0), 0) << "there is none";
    EXPECT_EQ(room_notices, 1) << "told once";
}

TEST_F(Serial8250Test, TheFifoTakesSixteenAndTellsOfItsTriggerLevel) {
    write(2, 0x81);  // level 8
    write(1, 0x01);
    EXPECT_EQ(receive("1234567"), 7U);
    EXPECT_EQ(read(2), 0xcc) << "below the level: a timeout";
    EXPECT_EQ(receive("8"), 1U);
    EXPECT_EQ(read(2), 0xc4);
    EXPECT_EQ(receive("90abcdefgh"), 8U);
    EXPECT_EQ(receive("z"), 0U);
    std::string got;
    while ((read(5) & 1U) != 0) got += static_cast<char>(read(0));
    EXPECT_EQ(got, "1234567890abcdef");
    EXPECT_EQ(room_notices, 1);
    EXPECT_EQ(read(5), 0x60) << "no overrun";
}

TEST_F(Serial8250Test, ClearingTheFifoMakesRoom) {
    write(2, 0x01);
    EXPECT_EQ(receive("0123456789abcdefX"), 16U);
    write(2, 0x03);
    EXPECT_EQ(room_notices, 1);
    EXPECT_EQ(read(5), 0x60);
    EXPECT_EQ(receive("y"), 1U);
    write(2, 0x00);
    EXPECT_EQ(read(5), 0x60) << "turning the FIFO clears it";
}

TEST_F(Serial8250Test, LoopbackIsAWireToItself) {
    write(2, 0x01);
    write(4, 0x10);
    (void)read(6);
    write(0, 'q');
    EXPECT_EQ(sent, "");
    EXPECT_EQ(read(0), 'q');
    EXPECT_EQ(receive("outside"), 0U);
    write(4, 0x1f);
    EXPECT_EQ(read(6), 0xfb) << "RI has risen: no delta";
    write(4, 0x10);
    EXPECT_EQ(read(6), 0x0f);
    for (int i = 0; i < 17; ++i) write(0, 'r');
    EXPECT_EQ(read(5), 0x63) << "overrun";
    EXPECT_EQ(read(5), 0x61);
    write(4, 0x00);
    EXPECT_EQ(room_notices, 0) << "the FIFO is full";
    (void)read(0);
    EXPECT_EQ(room_notices, 1);
}

TEST_F(Serial8250Test, InterruptsComeByPriority) {
    write(1, 0x0f);
    write(4, 0x10);
    (void)read(6);
    write(4, 0x13);
    write(0, 'a');
    write(0, 'b');  // an overrun without FIFO
    EXPECT_EQ(read(2), 0x06);
    EXPECT_EQ(read(5) & 0x03, 0x03);
    EXPECT_EQ(read(2), 0x04);
    EXPECT_EQ(read(0), 'b');
    EXPECT_EQ(read(2), 0x02);
    EXPECT_EQ(read(2), 0x00);
    EXPECT_TRUE(line.is_up());
    EXPECT_EQ(read(6), 0x33);
    EXPECT_EQ(read(2), 0x01);
    EXPECT_FALSE(line.is_up());
}

TEST_F(Serial8250Test, TheFunctionsMayCallTheChip) {
    Serial8250* echo_chip = nullptr;
    RecordingLine echo_line;
    std::size_t taken = 0;
    Serial8250 echo{echo_line,
                    {.send = [&](std::byte byte) { taken += echo_chip->receive(std::span{&byte, 1}); },
                     .has_room = [&] { taken += echo_chip->receive({}); }}};
    echo_chip = &echo;
    out8(echo.ports(), 0, 'e');
    out8(echo.ports(), 0, 'f');
    EXPECT_EQ(in8(echo.ports(), 0), 'e');
    EXPECT_EQ(taken, 1U);
}

TEST_F(Serial8250Test, WithoutFunctionsBytesAreDropped) {
    Serial8250 mute{line, {}};
    out8(mute.ports(), 0, 'x');
    const std::string_view text = "ab";
    EXPECT_EQ(mute.receive(std::as_bytes(std::span{text})), 1U);
    EXPECT_EQ(in8(mute.ports(), 0), 'a');
}

TEST_F(Serial8250Test, EveryOffsetAndWidthIsAnswered) {
    for (const unsigned value : {0x00U, 0x13U, 0x80U, 0xffU})
        testing::touch_all(ports, Serial8250::port_count, static_cast<std::uint8_t>(value));
    write(3, 0x00);
    EXPECT_EQ(read(8), 0xff);
    EXPECT_EQ(testing::read_register<std::uint16_t>(ports, 7) >> 8U, 0xff);
}

TEST_F(Serial8250Test, ThreadsMayMeetInIt) {
    write(2, 0x01);
    write(1, 0x01);
    constexpr std::size_t total = 5000;
    std::size_t got = 0;
    std::uint8_t expected = 0;
    {
        std::jthread host{[this] {
            for (std::size_t i = 0; i < total;) {
                const std::byte byte{static_cast<std::uint8_t>(i)};
                i += chip.receive(std::span{&byte, 1});
                std::this_thread::yield();
            }
        }};
        while (got < total) {
            if ((read(5) & 1U) == 0) {
                std::this_thread::yield();
                continue;
            }
            EXPECT_EQ(read(0), expected++);
            ++got;
        }
    }
    EXPECT_FALSE(line.is_up());
}

}  // namespace
}  // namespace guestmem::vmm
