// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/pit_counter.hpp"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <utility>

namespace guestmem::vmm {
namespace {

/// OUT at each of the clocks after a count was written: what the data sheet draws.
std::string wave(PitCounter& counter, int clocks) {
    std::string drawn;
    for (int i = 0; i < clocks; ++i) {
        (void)counter.run(1);
        drawn += counter.is_out() ? '-' : '_';
    }
    return drawn;
}

PitCounter counter_of(unsigned mode, std::uint8_t count) {
    PitCounter counter;
    counter.write_control(static_cast<std::uint8_t>(0x10U | mode << 1U));
    counter.write_count(count);
    return counter;
}

TEST(PitCounter, DrawsTheDataSheetsWaves) {
    PitCounter counter = counter_of(0, 4);
    EXPECT_EQ(wave(counter, 8), "____----");
    counter = counter_of(2, 3);
    EXPECT_EQ(wave(counter, 9), "--_--_--_");
    counter = counter_of(3, 4);
    EXPECT_EQ(wave(counter, 8), "--__--__");
    counter = counter_of(3, 5);
    EXPECT_EQ(wave(counter, 10), "---__---__");
    counter = counter_of(4, 3);
    EXPECT_EQ(wave(counter, 8), "---_----");
}

TEST(PitCounter, TheGateTriggersModesOneAndFive) {
    for (const bool is_strobe : {false, true}) {
        PitCounter counter = counter_of(is_strobe ? 5 : 1, 3);
        EXPECT_EQ(wave(counter, 3), "---");
        counter.set_gate(false);
        counter.set_gate(true);
        EXPECT_EQ(wave(counter, 6), is_strobe ? "---_--" : "___---");
        counter.set_gate(false);
        counter.set_gate(true);
        EXPECT_EQ(wave(counter, 2), is_strobe ? "--" : "__");
        counter.set_gate(false);
        counter.set_gate(true);
        EXPECT_EQ(wave(counter, 5), is_strobe ? "---_-" : "___--") << "triggered again";
    }
}

TEST(PitCounter, ANewCountInModeTwoWaitsForTheEndOfThePeriod) {
    PitCounter counter = counter_of(2, 4);
    EXPECT_EQ(wave(counter, 2), "--");
    counter.write_count(2);
    EXPECT_EQ(wave(counter, 6), "-_-_-_");
}

TEST(PitCounter, ACountOfOneInModesTwoAndThreeKeepsTheOutputUp) {
    for (const unsigned mode : {2U, 3U}) {
        PitCounter counter = counter_of(mode, 1);
        EXPECT_EQ(wave(counter, 6), "------");
        EXPECT_FALSE(counter.clocks_to_rise());
        EXPECT_FALSE(counter.run(1'000'000));
    }
}

/// One clock after another.
struct NaiveCounter {
    unsigned mode = 0, access = 3;
    bool is_bcd = false, gate = true, out = true, null = true;
    bool loaded = false, load_next = false, armed = false, second_write = false, second_read = false,
         held = false;
    unsigned first = 0, limit = 65536;
    unsigned wanted = 0, element = 0, period = 0;
    int latched = -1, latched_status = -1;
    bool rose = false;

    void set_out(bool value) {
        rose = rose || (value && !out);
        out = value;
    }
    void control(unsigned word) {
        const bool old_gate = gate, old_out = out;
        *this = NaiveCounter{};
        gate = old_gate;
        out = old_out;
        mode = word >> 1 & 7;
        if (mode == 6 || mode == 7) mode -= 4;
        access = word >> 4 & 3;
        is_bcd = (word & 1) != 0;
        limit = is_bcd ? 10000 : 65536;
        set_out(mode != 0);
    }
    void write(unsigned byte) {
        if (access == 3 && !second_write) {
            first = byte;
            second_write = true;
            if (mode == 0) held = true, armed = false, load_next = false, set_out(false);
            return;
        }
        unsigned value = access == 1 ? byte : byte << 8;
        if (access == 3) value |= first, second_write = false;
        if (is_bcd)
            value = (value >> 12) * 1000 + (value >> 8 & 15) * 100 + (value >> 4 & 15) * 10 + (value & 15);
        wanted = value % limit == 0 ? limit : value % limit;
        null = true;
        held = false;
        if (mode == 0) set_out(false);
        if (mode == 0 || mode == 4 || ((mode == 2 || mode == 3) && !loaded)) load_next = true;
    }
    void set_gate(bool value) {
        if (wanted != 0 && value && !gate && mode != 0 && mode != 4) load_next = true;
        gate = value;
        if (wanted != 0 && !value && (mode == 2 || mode == 3)) set_out(true);
    }
    void begin() {
        period = wanted;
        element = mode == 3 ? wanted / 2 * 2 : wanted;
        null = false;
    }
    void clock() {
        if (load_next) {
            load_next = false;
            loaded = armed = true;
            begin();
            return set_out(mode >= 2);
        }
        if (mode >= 4) set_out(true);
        if (!loaded || held || (!gate && mode != 1 && mode != 5)) return;
        if (mode == 2) {
            element == 1 ? begin() : void(--element);
            return set_out(element != 1 || period == 1);
        }
        if (mode == 3) return clock_square();
        element = element == 0 ? limit - 1 : element - 1;
        if (element != 0 || !armed) return;
        armed = false;
        set_out(mode < 4);
    }
    void clock_square() {
        // Even counts and low halves end when 2 goes; the high half of an odd count has a clock at 0.
        const unsigned last = out && period % 2 == 1 ? 0 : 2;
        if (element > last) {
            element -= 2;
            return;
        }
        begin();
        set_out(wanted == 1 || !out);
    }
    unsigned shown() const {
        const unsigned value = element % limit;
        return is_bcd ? value / 1000 << 12 | value / 100 % 10 << 8 | value / 10 % 10 << 4 | value % 10
                      : value;
    }
    void latch() {
        if (latched < 0) latched = static_cast<int>(shown());
    }
    void latch_status() {
        if (latched_status >= 0) return;
        latched_status =
            static_cast<int>((out ? 0x80U : 0) | (null ? 0x40U : 0) | access << 4 | mode << 1 | is_bcd);
    }
    unsigned read() {
        if (latched_status >= 0) return static_cast<unsigned>(std::exchange(latched_status, -1));
        const unsigned value = latched >= 0 ? static_cast<unsigned>(latched) : shown();
        const bool is_high = access == 2 || (access == 3 && second_read);
        if (access != 3 || second_read) latched = -1;
        if (access == 3) second_read = !second_read;
        return is_high ? value >> 8 : value & 0xff;
    }
};

class CounterModel {
public:
    explicit CounterModel(unsigned seed) : random_(seed) {}

    void step() {
        switch (below(8)) {
            case 0: {
                const unsigned word = (1 + below(3)) << 4 | below(16);
                if (below(4) != 0) break;
                counter_.write_control(static_cast<std::uint8_t>(word));
                naive_.control(word);
                break;
            }
            case 1: {
                const unsigned byte = below(3) == 0 ? below(256) : below(9);
                counter_.write_count(static_cast<std::uint8_t>(byte));
                naive_.write(byte);
                break;
            }
            case 2: {
                const bool is_up = below(3) != 0;
                counter_.set_gate(is_up);
                naive_.set_gate(is_up);
                break;
            }
            case 3: ASSERT_EQ(counter_.read(), naive_.read()); break;
            case 4: counter_.latch_count(), naive_.latch(); break;
            case 5: counter_.latch_status(), naive_.latch_status(); break;
            default: run(below(6) == 0 ? below(150'000) : below(12)); break;
        }
        ASSERT_EQ(counter_.is_out(), naive_.out);
    }

private:
    unsigned below(unsigned limit) { return static_cast<unsigned>(random_() % limit); }
    void run(unsigned clocks) {
        const auto next = counter_.clocks_to_rise();
        naive_.rose = false;
        for (unsigned i = 1; i <= clocks; ++i) {
            const bool had_risen = naive_.rose;
            naive_.clock();
            if (naive_.rose && !had_risen) {
                ASSERT_TRUE(next);
                ASSERT_EQ(*next, i);
            }
        }
        if (next && *next <= clocks) {
            ASSERT_TRUE(naive_.rose);
        }
        ASSERT_EQ(counter_.run(clocks), naive_.rose);
    }
    std::mt19937 random_;
    PitCounter counter_;
    NaiveCounter naive_;
};

TEST(PitCounter, AgreesWithANaiveModelThatDoesOneClockAtATime) {
    for (unsigned seed = 1; seed <= 60; ++seed) {
        CounterModel model{seed};
        for (int step = 0; step < 800; ++step) {
            model.step();
            if (HasFatalFailure()) FAIL() << "seed " << seed << ", step " << step;
        }
    }
}

}  // namespace
}  // namespace guestmem::vmm
