// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/pit.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "guestmem/device/testing/manual_clock.hpp"
#include "guestmem/device/testing/recording_line.hpp"
#include "guestmem/vmm/devices/testing/ports.hpp"

namespace guestmem::vmm {
namespace {

using guestmem::testing::ManualClock;
using guestmem::testing::RecordingLine;
using testing::in8;
using testing::out8;

constexpr std::uint64_t second_ns = 1'000'000'000;

class PitTest : public ::testing::Test {
protected:
    ManualClock clock;
    RecordingLine line;
    Pit pit{clock, line};
    IoDevice& counters = pit.counter_ports();
    IoDevice& control = pit.control_port();

    void start(unsigned counter, unsigned word, unsigned count) {
        out8(counters, 3, counter << 6U | 0x30U | word);
        out8(counters, counter, count & 0xffU);
        out8(counters, counter, count >> 8U);
    }
    unsigned read_both(unsigned counter) {
        const unsigned low = in8(counters, counter);
        return low | static_cast<unsigned>(in8(counters, counter)) << 8U;
    }
    void advance_clocks(std::uint64_t clocks) {
        clock.advance_to(Pit::to_ns(Pit::to_clocks(clock.now_ns()) + clocks));
    }
};

TEST_F(PitTest, ClocksAndNanosecondsAgreeAtTheirBorders) {
    for (const std::uint64_t clocks : {0ULL, 1ULL, 20ULL, 21ULL, 22ULL, 1'193'182ULL, 1ULL << 50U}) {
        EXPECT_EQ(Pit::to_clocks(Pit::to_ns(clocks)), clocks);
        if (clocks != 0) {
            EXPECT_EQ(Pit::to_clocks(Pit::to_ns(clocks) - 1), clocks - 1);
        }
    }
    EXPECT_EQ(Pit::to_clocks(88 * second_ns), 105'000'000U);
}

TEST_F(PitTest, ATickOfAThousandHertzDoesNotDriftInAnHour) {
    start(0, 0x04, 1193);  // Linux at HZ=1000
    const std::uint64_t before = line.count_raised();
    for (int minute = 0; minute < 60; ++minute) clock.advance(60 * second_ns);
    EXPECT_EQ(line.count_raised() - before, 3600ULL * 105'000'000 / 88 / 1193);
}

TEST_F(PitTest, ATickInModeThreeHasTheSamePeriod) {
    start(0, 0x06, 0);  // 65536: DOS' 18.2 Hz
    const std::uint64_t before = line.count_raised();
    clock.advance(1000 * second_ns);
    EXPECT_EQ(line.count_raised() - before, 1000ULL * 105'000'000 / 88 / 65536);
}

/// Time goes by, and alarms ring after all of it.
class LateClock final : public DeviceClock {
public:
    std::uint64_t now = 0;
    std::function<void()> handler;
    std::optional<std::uint64_t> when;
    [[nodiscard]] std::uint64_t now_ns() const override { return now; }
    [[nodiscard]] std::unique_ptr<DeviceAlarm> make_alarm(std::function<void()> ring) override {
        handler = std::move(ring);
        return std::make_unique<Alarm>(*this);
    }

private:
    class Alarm final : public DeviceAlarm {
    public:
        explicit Alarm(LateClock& clock) : clock_(clock) {}
        void set(std::optional<std::uint64_t> when_ns) override { clock_.when = when_ns; }

    private:
        LateClock& clock_;
    };
};

TEST(Pit, EdgesThatNobodyCouldRingAreOneAndTheNextIsOnTheGrid) {
    LateClock clock;
    RecordingLine line;
    Pit pit{clock, line};
    IoDevice& counters = pit.counter_ports();
    out8(counters, 3, 0x34);
    out8(counters, 0, 0x00);
    out8(counters, 0, 0x10);  // 4096
    const std::uint64_t before = line.count_raised();
    clock.now = 10 * second_ns;
    clock.handler();
    EXPECT_EQ(line.count_raised() - before, 1U);
    ASSERT_TRUE(clock.when);
    EXPECT_GT(*clock.when, clock.now);
    // Loaded at clock 1, so it rises at clocks 1 + n * 4096.
    EXPECT_EQ((Pit::to_clocks(*clock.when) - 1) % 4096, 0U);
    EXPECT_LE(Pit::to_clocks(*clock.when) - Pit::to_clocks(clock.now), 4096U);
}

TEST_F(PitTest, APeriodTooShortForTheHostIsServedLessOften) {
    start(0, 0x04, 2);
    const std::size_t rings = clock.advance(second_ns);
    EXPECT_LE(rings, second_ns / Pit::min_ring_ns + 1);
    EXPECT_GT(rings, second_ns / Pit::min_ring_ns / 2);
}

TEST_F(PitTest, AOneShotRingsOnceAfterItsCountAndOneClock) {
    start(0, 0x00, 1000);
    EXPECT_FALSE(line.is_up());
    advance_clocks(1000);
    EXPECT_FALSE(line.is_up());
    advance_clocks(1);
    EXPECT_TRUE(line.is_up());
    const std::size_t raised = line.count_raised();
    clock.advance(second_ns);
    EXPECT_EQ(line.count_raised(), raised);
    EXPECT_FALSE(clock.next_ns()) << "nothing rings any more";
}

TEST_F(PitTest, AGuestTimesItsTscWithCounterTwoAsLinuxDoes) {
    // quick_pit_calibrate(): gate on, speaker off, mode 0, count 0xffff, reads without a latch.
    out8(control, 0, (in8(control) & ~2U) | 1U);
    out8(counters, 3, 0xb0);
    out8(counters, 2, 0xff);
    out8(counters, 2, 0xff);
    advance_clocks(1);
    EXPECT_EQ(read_both(2), 0xffffU);
    advance_clocks(0x1234);
    EXPECT_EQ(read_both(2), 0xffffU - 0x1234U);
    // pit_calibrate_tsc(): the output after about 50 ms.
    start(2, 0x00, 59'659);
    EXPECT_EQ(in8(control) & 0x20U, 0U);
    advance_clocks(59'659);
    EXPECT_EQ(in8(control) & 0x20U, 0U);
    advance_clocks(1);
    EXPECT_EQ(in8(control) & 0x20U, 0x20U);
    EXPECT_FALSE(clock.next_ns()) << "counter 2 needs no alarm";
}

TEST_F(PitTest, TheGateOfCounterTwoStopsIt) {
    start(2, 0x00, 100);
    clock.advance(second_ns);
    EXPECT_EQ(in8(control) & 0x20U, 0U);
    out8(control, 0, 1);
    clock.advance(second_ns);
    EXPECT_EQ(in8(control), (in8(control) & 0x10U) | 0x21U);
}

TEST_F(PitTest, TheRefreshBitTurnsOver) {
    const unsigned before = in8(control) & 0x10U;
    clock.advance(15'085);
    EXPECT_NE(in8(control) & 0x10U, before);
    clock.advance(15'085);
    EXPECT_EQ(in8(control) & 0x10U, before);
}

TEST_F(PitTest, ALatchedCountStaysUntilItWasRead) {
    start(0, 0x04, 0x5000);
    advance_clocks(1);
    out8(counters, 3, 0x00);
    advance_clocks(0x100);
    out8(counters, 3, 0x00);
    EXPECT_EQ(read_both(0), 0x5000U);
    EXPECT_EQ(read_both(0), 0x4f00U);
}

TEST_F(PitTest, ReadBackLatchesStatusAndCountOfSeveral) {
    start(0, 0x04, 0x5000);
    start(2, 0x07, 0x0100);
    out8(counters, 3, 0xca);  // both, counters 0 and 2
    EXPECT_EQ(in8(counters, 0), 0xf4) << "OUT, null count, both bytes, mode 2";
    EXPECT_EQ(in8(counters, 2), 0xf7) << "OUT, null count, both bytes, mode 3, BCD";
    EXPECT_EQ(read_both(0), 0U);
    advance_clocks(1);
    out8(counters, 3, 0xe2);  // status only
    EXPECT_EQ(in8(counters, 0), 0xb4);
    EXPECT_EQ(read_both(0), 0x5000U);
    EXPECT_EQ(in8(counters, 1), 0U) << "counter 1 was not asked";
}

TEST_F(PitTest, EveryOffsetAndWidthIsAnswered) {
    for (const unsigned value : {0x00U, 0x36U, 0xc0U, 0xffU}) {
        testing::touch_all(counters, 4, static_cast<std::uint8_t>(value));
        testing::touch_all(control, 1, static_cast<std::uint8_t>(value));
        clock.advance(1'000'000);
    }
    EXPECT_EQ(in8(counters, 3), 0xff);
    EXPECT_EQ(testing::read_register<std::uint64_t>(counters, 3) >> 8U, 0xff'ffff'ffff'ffffU);
}

TEST_F(PitTest, ThreadsMayMeetInIt) {
    {
        std::jthread guest{[this] {
            for (unsigned i = 0; i < 500; ++i) {
                start(0, 0x04, 64 + i);
                out8(counters, 3, 0x00);  // latched: time goes on between the bytes
                EXPECT_LE(read_both(0), 64 + i);
            }
        }};
        for (int i = 0; i < 500; ++i) clock.advance(100'000);
    }
    start(0, 0x00, 10);
    advance_clocks(11);
    EXPECT_TRUE(line.is_up());
}

}  // namespace
}  // namespace guestmem::vmm
