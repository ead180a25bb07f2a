// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/acpi_power.hpp"

#include <gtest/gtest.h>

#include <thread>

#include "guestmem/device/testing/manual_clock.hpp"
#include "guestmem/device/testing/recording_line.hpp"
#include "guestmem/vmm/devices/testing/ports.hpp"

namespace guestmem::vmm {
namespace {

using guestmem::testing::ManualClock;
using guestmem::testing::RecordingLine;
using testing::read_register;
using testing::write_register;

class AcpiPowerTest : public ::testing::Test {
protected:
    ManualClock clock;
    RecordingLine sci;
    int power_offs = 0;
    AcpiPower chip{clock, sci, [this] { ++power_offs; }};

    std::uint16_t status() { return read_register<std::uint16_t>(chip.event_ports(), 0); }
    void clear(std::uint16_t bits) { write_register(chip.event_ports(), 0, bits); }
    void enable(std::uint16_t bits) { write_register(chip.event_ports(), 2, bits); }
};

TEST_F(AcpiPowerTest, ThePowerButtonIsALevelUntilItsStatusIsCleared) {
    enable(0x0100);
    chip.press_power_button();
    EXPECT_TRUE(sci.is_up());
    EXPECT_EQ(status(), 0x0100);
    clear(0x0001);
    EXPECT_TRUE(sci.is_up());
    clear(0x0100);
    EXPECT_FALSE(sci.is_up());
}

TEST_F(AcpiPowerTest, AButtonPressedBeforeItIsEnabledIsKept) {
    chip.press_power_button();
    EXPECT_FALSE(sci.is_up());
    enable(0x0100);
    EXPECT_TRUE(sci.is_up());
    enable(0x0000);
    EXPECT_FALSE(sci.is_up());
}

TEST_F(AcpiPowerTest, TheClocksAlarmCanBeEnabledAndIsNeverTold) {
    enable(0x0400);
    EXPECT_EQ(read_register<std::uint16_t>(chip.event_ports(), 2), 0x0400);
    clock.advance(100'000'000'000'000);
    EXPECT_EQ(status() & 0x0400, 0);
    EXPECT_FALSE(sci.is_up());
}

TEST_F(AcpiPowerTest, SleepTypeFiveIsOff) {
    auto& control = chip.control_ports();
    EXPECT_EQ(read_register<std::uint16_t>(control, 0), 0x0001);
    write_register<std::uint16_t>(control, 0, AcpiPower::sleep_type_s5 << 10U);
    EXPECT_EQ(power_offs, 0) << "the type alone";
    write_register<std::uint16_t>(control, 0, AcpiPower::sleep_type_s5 << 10U | 1U << 13U);
    EXPECT_EQ(power_offs, 1);
    EXPECT_EQ(read_register<std::uint16_t>(control, 0), 0x1401) << "SLP_EN reads as zero";
    write_register<std::uint16_t>(control, 0, 1U << 13U);
    EXPECT_EQ(power_offs, 1);
    EXPECT_EQ(status(), 0x8000) << "awake at once";
}

TEST_F(AcpiPowerTest, TheTimerRunsAtItsRate) {
    const auto before = read_register<std::uint32_t>(chip.timer_ports(), 0);
    clock.advance(88'000'000'000);
    EXPECT_EQ(read_register<std::uint32_t>(chip.timer_ports(), 0) - before, 315'000'000U);
    const auto whole = read_register<std::uint32_t>(chip.timer_ports(), 0);
    EXPECT_EQ(read_register<std::uint16_t>(chip.timer_ports(), 2), whole >> 16U);
    EXPECT_EQ(read_register<std::uint32_t>(chip.timer_ports(), 3), 0xffff'ff00U | whole >> 24U);
    write_register<std::uint32_t>(chip.timer_ports(), 0, 0);
    EXPECT_EQ(read_register<std::uint32_t>(chip.timer_ports(), 0), whole);
}

TEST(AcpiPower, ATimerOf24BitsTellsOfItsHighestBit) {
    ManualClock clock;
    RecordingLine sci;
    AcpiPower chip{clock, sci, {}, AcpiPower::TimerWidth::bits_24};
    write_register<std::uint16_t>(chip.event_ports(), 2, 0x0001);
    constexpr std::uint64_t half_ns = (std::uint64_t{1} << 23U) * 17'600 / 63;  // about 2.34 s
    clock.advance_to(half_ns - 1000);
    EXPECT_FALSE(sci.is_up());
    clock.advance(2000);
    EXPECT_TRUE(sci.is_up());
    EXPECT_EQ(read_register<std::uint32_t>(chip.timer_ports(), 0) >> 23U, 1U);
    write_register<std::uint16_t>(chip.event_ports(), 0, 0x0001);
    EXPECT_FALSE(sci.is_up());
    clock.advance(half_ns);
    EXPECT_TRUE(sci.is_up());
    EXPECT_EQ(read_register<std::uint32_t>(chip.timer_ports(), 0) >> 23U, 0U) << "it wrapped";
}

TEST_F(AcpiPowerTest, WithoutAnEnabledTimerNothingRings) {
    EXPECT_EQ(clock.advance(100'000'000'000'000), 0U);
    EXPECT_EQ(status(), 0x0001);
}

TEST_F(AcpiPowerTest, EveryOffsetAndWidthIsAnswered) {
    for (const unsigned value : {0x00U, 0x14U, 0x34U, 0xffU}) {
        testing::touch_all(chip.event_ports(), 4, static_cast<std::uint8_t>(value));
        testing::touch_all(chip.control_ports(), 2, static_cast<std::uint8_t>(value));
        testing::touch_all(chip.timer_ports(), 4, static_cast<std::uint8_t>(value));
    }
    EXPECT_GT(power_offs, 0) << "0x34 in its second byte is SLP_EN and type 5";
    EXPECT_EQ(read_register<std::uint16_t>(chip.event_ports(), 2), 0x0521)
        << "only what there is can be enabled";
}

TEST_F(AcpiPowerTest, ThreadsMayMeetInIt) {
    enable(0x0101);
    {
        std::jthread host{[this] {
            for (int i = 0; i < 1000; ++i) chip.press_power_button();
        }};
        for (int i = 0; i < 1000; ++i) {
            clear(0xffff);
            clock.advance(10'000'000);
        }
    }
    clear(0xffff);
    EXPECT_FALSE(sci.is_up());
}

}  // namespace
}  // namespace guestmem::vmm
