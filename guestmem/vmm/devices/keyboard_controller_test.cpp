// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/keyboard_controller.hpp"

#include <gtest/gtest.h>

#include <initializer_list>
#include <thread>

#include "guestmem/device/testing/recording_line.hpp"
#include "guestmem/vmm/devices/testing/ports.hpp"

namespace guestmem::vmm {
namespace {

using guestmem::testing::RecordingLine;
using testing::in8;
using testing::out8;

class KeyboardControllerTest : public ::testing::Test {
protected:
    RecordingLine line;
    int resets = 0;
    KeyboardController chip{line, [this] { ++resets; }};

    std::uint8_t status() { return in8(chip.command_port()); }
    std::uint8_t read() { return in8(chip.data_port()); }
    void command(unsigned value) { out8(chip.command_port(), 0, value); }
    void data(unsigned value) { out8(chip.data_port(), 0, value); }
    void expect_bytes(std::initializer_list<unsigned> bytes) {
        for (const unsigned byte : bytes) {
            EXPECT_TRUE(line.is_up());
            EXPECT_EQ(status() & 0x21, 0x01) << "a byte, and none of an auxiliary device";
            EXPECT_EQ(read(), byte);
        }
        EXPECT_EQ(status() & 0x01, 0x00);
        EXPECT_FALSE(line.is_up());
    }
};

TEST_F(KeyboardControllerTest, LinuxFindsAControllerAndNoMouse) {
    // i8042_controller_check(), _selftest(), _init(), check_aux() of the i8042 driver.
    EXPECT_EQ(status(), 0x14);
    command(0xaa);
    EXPECT_EQ(read(), 0x55);
    command(0x20);
    const unsigned control = read();
    EXPECT_EQ(control, 0x65U);
    command(0x60);
    data((control | 0x10) & ~0x41U);
    command(0x20);
    EXPECT_EQ(read(), 0x34);
    command(0xd3);
    data(0x5a);
    EXPECT_EQ(status() & 0x21, 0x01) << "not an auxiliary byte";
    EXPECT_EQ(read(), 0x5a);
    command(0xa9);
    EXPECT_EQ(read(), 0x01) << "neither 0 nor 0xfa nor 0xff";
    command(0xab);
    EXPECT_EQ(read(), 0x00);
}

TEST_F(KeyboardControllerTest, LinuxFindsAKeyboard) {
    command(0x60);
    data(0x05);
    data(0xf2);
    expect_bytes({0xfa, 0xab, 0x83});
    data(0xed);
    expect_bytes({0xfa});
    data(0x00);
    expect_bytes({0xfa});
    data(0xff);
    expect_bytes({0xfa, 0xaa});
    data(0xf0);
    expect_bytes({0xfa});
    data(0x00);
    expect_bytes({0xfa, 0x02});
    data(0xf3);
    expect_bytes({0xfa});
    data(0xf4);
    expect_bytes({0xfa});
    data(0xee);
    expect_bytes({0xee});
    data(0xfe);
    expect_bytes({0xee});
    data(0x12);
    expect_bytes({0xfe});
}

TEST_F(KeyboardControllerTest, EachByteIsAnEdge) {
    data(0xf2);
    expect_bytes({0xfa, 0xab, 0x41});
    EXPECT_EQ(line.count_raised(), 3U);
}

TEST_F(KeyboardControllerTest, WhatIsOffSaysNothing) {
    command(0x60);
    data(0x75);  // the keyboard's clock is off
    command(0xd2);
    data(0x11);
    EXPECT_EQ(read(), 0x11);
    command(0xae);
    data(0xf4);
    command(0xad);
    expect_bytes({0xfa});
    command(0x60);
    data(0x44);
    data(0xf4);
    EXPECT_FALSE(line.is_up()) << "no interrupt";
    EXPECT_EQ(read(), 0xfa);
}

TEST_F(KeyboardControllerTest, AControllersAnswerComesBeforeTheKeyboardsBytes) {
    data(0xf2);
    command(0x20);
    EXPECT_EQ(read(), 0x65);
    expect_bytes({0xfa, 0xab, 0x41});
}

TEST_F(KeyboardControllerTest, TheQueueIsBounded) {
    for (int i = 0; i < 1000; ++i) data(0xf2);
    int count = 0;
    while ((status() & 1U) != 0) {
        (void)read();
        ++count;
    }
    EXPECT_EQ(count, static_cast<int>(KeyboardController::queue_bytes) + 1) << "and the one on the way out";
}

TEST_F(KeyboardControllerTest, ThereAreThreeWaysToReset) {
    command(0xfe);
    EXPECT_EQ(resets, 1);
    command(0xf1);
    EXPECT_EQ(resets, 1);
    command(0xd1);
    data(0xdf);
    EXPECT_EQ(resets, 1);
    command(0xd1);
    data(0xde);
    EXPECT_EQ(resets, 2);
    out8(chip.system_port(), 0, in8(chip.system_port()) | 1U);
    EXPECT_EQ(resets, 3);
    out8(chip.reset_port(), 0, 0x02);
    EXPECT_EQ(resets, 3);
    out8(chip.reset_port(), 0, 0x06);
    EXPECT_EQ(resets, 4);
    EXPECT_EQ(in8(chip.reset_port()), 0x06);
    out8(chip.reset_port(), 0, 0x06);
    EXPECT_EQ(resets, 4) << "bit 2 has to rise";
}

TEST_F(KeyboardControllerTest, EveryOffsetAndWidthIsAnswered) {
    for (IoDevice* port : {&chip.data_port(), &chip.command_port(), &chip.system_port(), &chip.reset_port()})
        for (unsigned value = 0; value < 256; ++value)
            testing::touch_all(*port, 1, static_cast<std::uint8_t>(value));
    for (unsigned value = 0; value < 256; ++value) {
        command(value);
        data(0xa5);
        (void)read();
    }
    EXPECT_EQ(testing::read_register<std::uint16_t>(chip.command_port(), 0) >> 8U, 0xff);
}

TEST_F(KeyboardControllerTest, AMachineWithoutAResetFunctionStays) {
    KeyboardController lonely{line, {}};
    out8(lonely.command_port(), 0, 0xfe);
    EXPECT_EQ(in8(lonely.command_port()) & 0x08, 0x08);
}

TEST_F(KeyboardControllerTest, ThreadsMayMeetInIt) {
    {
        std::jthread other{[this] {
            for (int i = 0; i < 2000; ++i) data(0xf4);
        }};
        for (int i = 0; i < 2000; ++i) (void)read();
    }
    while ((status() & 1U) != 0) EXPECT_EQ(read(), 0xfa);
    EXPECT_FALSE(line.is_up());
}

}  // namespace
}  // namespace guestmem::vmm
