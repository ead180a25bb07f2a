// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/rtc.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <thread>

#include "guestmem/device/testing/manual_clock.hpp"
#include "guestmem/device/testing/recording_line.hpp"
#include "guestmem/vmm/devices/testing/ports.hpp"

namespace guestmem::vmm {
namespace {

using guestmem::testing::ManualClock;
using guestmem::testing::RecordingLine;
using testing::in8;
using testing::out8;

constexpr std::int64_t second_ns = 1'000'000'000;
constexpr std::int64_t start_ns = 1'709'211'599 * second_ns;  // 2024-02-29 12:59:59, a Thursday

class RtcTest : public ::testing::Test {
protected:
    ManualClock clock;
    RecordingLine line;
    std::int64_t shift_ns = 0;
    Rtc rtc{clock, [this] { return start_ns + shift_ns + static_cast<std::int64_t>(clock.now_ns()); }, line};

    std::uint8_t read(unsigned index) {
        out8(rtc.ports(), 0, index);
        return in8(rtc.ports(), 1);
    }
    void write(unsigned index, unsigned value) {
        out8(rtc.ports(), 0, index);
        out8(rtc.ports(), 1, value);
    }
    /// Hour, minute, second as they read.
    std::uint32_t time() {
        const std::uint32_t hour = read(4);
        const std::uint32_t minute = read(2);
        return hour << 16U | minute << 8U | read(0);
    }
    std::uint32_t date() {
        const std::uint32_t century = read(0x32);
        const std::uint32_t year = read(9);
        const std::uint32_t month = read(8);
        return century << 24U | year << 16U | month << 8U | read(7);
    }
    void advance_seconds(std::uint64_t seconds) { clock.advance(seconds * second_ns); }
};

TEST_F(RtcTest, TellsTheTimeOfTheWallClock) {
    EXPECT_EQ(time(), 0x125959U);
    EXPECT_EQ(date(), 0x20240229U);
    EXPECT_EQ(read(6), 5);
    EXPECT_EQ(read(0x0d), 0x80);
    advance_seconds(1);
    EXPECT_EQ(time(), 0x130000U);
    write(0x0b, 0x00);
    EXPECT_EQ(time(), 0x810000U) << "12 hours";
    write(0x0b, 0x06);
    EXPECT_EQ(time(), 0x0d0000U) << "binary";
}

TEST_F(RtcTest, AGuestSetsTheTimeAsLinuxDoes) {
    clock.advance(300'000'000);
    const std::uint8_t control = read(0x0b);
    write(0x0b, control | 0x80U);
    const std::uint8_t rate = read(0x0a);
    write(0x0a, rate | 0x70U);
    write(9, 0x99);
    write(0x32, 0x19);
    write(8, 0x12);
    write(7, 0x31);
    write(4, 0x23);
    write(2, 0x59);
    write(0, 0x58);
    advance_seconds(10);
    EXPECT_EQ(time(), 0x235958U) << "it stands";
    write(0x0b, control);
    write(0x0a, rate);
    EXPECT_EQ(time(), 0x235958U);
    clock.advance(499'999'999);
    EXPECT_EQ(time(), 0x235958U);
    clock.advance(1);
    EXPECT_EQ(time(), 0x235959U) << "half a second after the divider";
    advance_seconds(1);
    EXPECT_EQ(date(), 0x20000101U);
    EXPECT_EQ(time(), 0x000000U);
}

TEST_F(RtcTest, AByteWrittenWhileItRunsCountsAtOnce) {
    write(2, 0x00);
    EXPECT_EQ(time(), 0x120059U);
    advance_seconds(1);
    EXPECT_EQ(time(), 0x120100U);
}

TEST_F(RtcTest, SaysThatAnUpdateComes) {
    EXPECT_EQ(read(0x0a), 0x26);
    clock.advance_to(second_ns - 244'001);
    EXPECT_EQ(read(0x0a), 0x26);
    clock.advance(1);
    EXPECT_EQ(read(0x0a), 0xa6);
    clock.advance_to(second_ns);
    EXPECT_EQ(read(0x0a), 0x26);
    write(0x0b, 0x82);
    clock.advance_to(2 * second_ns - 1);
    EXPECT_EQ(read(0x0a), 0x26) << "not while SET";
}

TEST_F(RtcTest, ThePeriodicInterruptHasItsRate) {
    write(0x0b, 0x42);  // 1,024 Hz
    std::size_t count = 0;
    for (int i = 0; i < 10'000; ++i) {
        clock.advance(100'000);
        if (!line.is_up()) continue;
        ++count;
        EXPECT_EQ(read(0x0c) & 0xc0, 0xc0);
        EXPECT_FALSE(line.is_up());
    }
    EXPECT_EQ(count, 1024U);
    EXPECT_EQ(read(0x0c), 0);
}

TEST_F(RtcTest, AGuestThatDoesNotLookGetsNoBurst) {
    write(0x0b, 0x42);
    EXPECT_EQ(clock.advance(10 * second_ns), 1U) << "one alarm, then it waits for register C";
    EXPECT_TRUE(line.is_up());
    EXPECT_EQ(read(0x0c) & 0xc0, 0xc0);
    EXPECT_FALSE(line.is_up());
}

TEST_F(RtcTest, TheUpdateInterruptComesWithTheSecond) {
    clock.advance(250'000'000);
    write(0x0b, 0x12);
    (void)read(0x0c);
    clock.advance_to(second_ns - 1);
    EXPECT_FALSE(line.is_up());
    clock.advance(1);
    EXPECT_TRUE(line.is_up());
    EXPECT_EQ(read(0x0c) & 0xb0, 0x90);
}

TEST_F(RtcTest, AnAlarmComesAtItsTimeOfDay) {
    write(5, 0x14);
    write(3, 0x00);
    write(1, 0x05);
    write(0x0b, 0x22);
    advance_seconds(3605);
    EXPECT_FALSE(line.is_up());
    advance_seconds(1);
    EXPECT_TRUE(line.is_up());
    EXPECT_EQ(time(), 0x140005U);
    EXPECT_EQ(read(0x0c) & 0xa0, 0xa0);
    advance_seconds(86'399);
    EXPECT_FALSE(line.is_up());
    advance_seconds(1);
    EXPECT_TRUE(line.is_up());
}

TEST_F(RtcTest, AWallClockThatIsSetIsNoticedWithinAMinute) {
    write(5, 0x20);
    write(3, 0x00);
    write(1, 0x00);
    write(0x0b, 0x22);
    shift_ns = 7 * 3600 * second_ns;
    advance_seconds(60);
    EXPECT_TRUE(line.is_up());
}

TEST_F(RtcTest, EventsAreToldThoughTheyAreNotEnabled) {
    write(0x0b, 0x02);
    (void)read(0x0c);
    advance_seconds(1);
    EXPECT_EQ(read(0x0c), 0x50);
    EXPECT_EQ(line.count_raised(), 0U);
}

TEST_F(RtcTest, SetTakesTheUpdateInterruptAway) {
    write(0x0b, 0x12);
    write(0x0b, 0x92);
    EXPECT_EQ(read(0x0b), 0x82);
}

TEST_F(RtcTest, TheMemoryIsTheGuestsAndTheFirmwares) {
    rtc.store(0x34, 0x12);
    rtc.store(0x0b, 0xff);
    rtc.store(0x80, 0xff);
    EXPECT_EQ(read(0x34), 0x12);
    EXPECT_EQ(read(0x0b), 0x02) << "a register is no memory";
    write(0x7f, 0xa5);
    write(0xff, 0x5a);
    EXPECT_EQ(read(0x7f), 0x5a) << "bit 7 masks NMI, it is no address";
    write(0x0d, 0x00);
    EXPECT_EQ(read(0x0d), 0x80);
    write(0x0c, 0xff);
    EXPECT_EQ(read(0x0c) & 0x0f, 0);
    EXPECT_EQ(in8(rtc.ports(), 0), 0xff);
}

TEST_F(RtcTest, EveryOffsetAndWidthIsAnswered) {
    for (unsigned index = 0; index < 256; ++index) {
        out8(rtc.ports(), 0, index);
        testing::touch_all(rtc.ports(), 2, static_cast<std::uint8_t>(index ^ 0x55U));
        write(index, index * 37);
        clock.advance(333'333'333);
    }
    write(0x0b, 0x80);
    for (unsigned index = 0; index < 10; ++index) write(index, 0xff);
    write(0x32, 0xff);
    write(0x0b, 0x72);
    write(0x0a, 0x2f);
    EXPECT_NE(date(), 0U);
    advance_seconds(1000);
}

TEST(Rtc, AWallClockThatStandsIsNotAskedInACircle) {
    ManualClock clock;
    RecordingLine line;
    Rtc rtc{clock, [] { return second_ns - 1; }, line};
    out8(rtc.ports(), 0, 0x0b);
    out8(rtc.ports(), 1, 0x12);
    EXPECT_LE(clock.advance(second_ns), 20'000U);
    EXPECT_FALSE(line.is_up());
}

TEST(Rtc, AWallClockFarOutIsATime) {
    ManualClock clock;
    RecordingLine line;
    for (const std::int64_t wall :
         {std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max()}) {
        Rtc rtc{clock, [wall] { return wall; }, line};
        out8(rtc.ports(), 0, 0x0b);
        out8(rtc.ports(), 1, 0x72);
        for (unsigned index = 0; index < 10; ++index) {
            out8(rtc.ports(), 0, index);
            out8(rtc.ports(), 1, 0x99);
        }
        clock.advance(second_ns);
        out8(rtc.ports(), 0, 0x0c);
        EXPECT_EQ(in8(rtc.ports(), 1) & 0x40, 0x40);
    }
}

TEST_F(RtcTest, ThreadsMayMeetInIt) {
    write(0x0b, 0x72);
    {
        std::jthread guest{[this] {
            for (int i = 0; i < 1000; ++i) EXPECT_EQ(read(0x0b), 0x72);
        }};
        for (int i = 0; i < 1000; ++i) clock.advance(second_ns / 100);
    }
    advance_seconds(1);
    EXPECT_TRUE(line.is_up());
}

}  // namespace
}  // namespace guestmem::vmm
