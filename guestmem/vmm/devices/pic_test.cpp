// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/pic.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "guestmem/device/testing/recording_line.hpp"
#include "guestmem/vmm/devices/testing/ports.hpp"

namespace guestmem::vmm {
namespace {

using guestmem::testing::RecordingLine;
using testing::in8;
using testing::out8;

class PicTest : public ::testing::Test {
protected:
    RecordingLine intr;
    Pic pic{intr};
    IoDevice& master = pic.master_ports();
    IoDevice& slave = pic.slave_ports();
    IoDevice& elcr = pic.elcr_ports();

    /// As Linux' init_8259A() does it, with vectors 0x30 to 0x3f; nothing masked.
    void initialize(unsigned icw4 = 0x01) {
        out8(master, 0, 0x11);
        out8(master, 1, 0x30);
        out8(master, 1, 0x04);
        out8(master, 1, icw4);
        out8(slave, 0, 0x11);
        out8(slave, 1, 0x38);
        out8(slave, 1, 0x02);
        out8(slave, 1, icw4 & ~0x10U);
    }
    std::uint8_t irr(IoDevice& chip) {
        out8(chip, 0, 0x0a);
        return in8(chip);
    }
    std::uint8_t isr(IoDevice& chip) {
        out8(chip, 0, 0x0b);
        return in8(chip);
    }
};

TEST_F(PicTest, AsksForNothingBeforeItWasInitialized) {
    pic.line(1).set(true);
    pic.line(9).set(true);
    EXPECT_FALSE(intr.is_up());
    EXPECT_EQ(pic.acknowledge(), 7);
    initialize();
    EXPECT_FALSE(intr.is_up()) << "initialization forgets edges";
}

TEST_F(PicTest, AnEdgeIsOneInterruptWithTheVectorOfItsInput) {
    initialize();
    pic.line(4).pulse();
    EXPECT_TRUE(intr.is_up());
    EXPECT_EQ(irr(master), 0x10);
    EXPECT_EQ(pic.acknowledge(), 0x34);
    EXPECT_FALSE(intr.is_up());
    EXPECT_EQ(irr(master), 0);
    EXPECT_EQ(isr(master), 0x10);
    pic.line(4).pulse();
    EXPECT_FALSE(intr.is_up()) << "its own interrupt is in service";
    out8(master, 0, 0x20);
    EXPECT_TRUE(intr.is_up());
}

TEST_F(PicTest, TheSecondChipGoesThroughInputTwo) {
    initialize();
    pic.line(12).pulse();
    EXPECT_EQ(pic.acknowledge(), 0x3c);
    EXPECT_EQ(isr(master), 0x04);
    EXPECT_EQ(isr(slave), 0x10);
    pic.line(3).pulse();
    EXPECT_FALSE(intr.is_up()) << "lower than input 2";
    pic.line(1).pulse();
    EXPECT_EQ(pic.acknowledge(), 0x31);
    out8(master, 0, 0x61);
    out8(slave, 0, 0x64);
    out8(master, 0, 0x62);
    EXPECT_EQ(pic.acknowledge(), 0x33);
}

TEST_F(PicTest, NobodyElseHoldsTheCascadeInput) {
    initialize();
    pic.line(Pic::cascade_input).set(true);
    EXPECT_FALSE(intr.is_up());
}

TEST_F(PicTest, ARequestThatIsMaskedBeforeItsAcknowledgeIsSpurious) {
    initialize();
    pic.line(3).pulse();
    out8(master, 1, 0x08);
    EXPECT_FALSE(intr.is_up());
    EXPECT_EQ(pic.acknowledge(), 0x37);
    EXPECT_EQ(isr(master), 0) << "the driver tells it from a real one by this";
    out8(master, 1, 0x00);
    EXPECT_EQ(pic.acknowledge(), 0x33) << "the edge was kept";
}

TEST_F(PicTest, ALevelComesAgainUntilItsLineGoesDown) {
    initialize();
    out8(elcr, 1, 0x08);
    pic.line(11).set(true);
    EXPECT_EQ(pic.acknowledge(), 0x3b);
    out8(slave, 0, 0x20);
    out8(master, 0, 0x20);
    EXPECT_EQ(pic.acknowledge(), 0x3b);
    pic.line(11).set(false);
    out8(slave, 0, 0x20);
    out8(master, 0, 0x20);
    EXPECT_FALSE(intr.is_up());
}

TEST_F(PicTest, SomeInputsAreAlwaysEdges) {
    out8(elcr, 0, 0xff);
    out8(elcr, 1, 0xff);
    EXPECT_EQ(testing::read_register<std::uint16_t>(elcr, 0), 0xdef8);
}

TEST_F(PicTest, AutomaticEoiLeavesNothingInService) {
    initialize(0x03);
    pic.line(5).pulse();
    EXPECT_EQ(pic.acknowledge(), 0x35);
    EXPECT_EQ(isr(master), 0);
    pic.line(9).pulse();
    pic.line(8).pulse();
    EXPECT_EQ(pic.acknowledge(), 0x38);
    EXPECT_EQ(pic.acknowledge(), 0x39) << "the second chip asks again by itself";
}

TEST_F(PicTest, RotationMakesTheServedOneTheLowest) {
    initialize();
    pic.line(3).pulse();
    EXPECT_EQ(pic.acknowledge(), 0x33);
    out8(master, 0, 0xa0);
    pic.line(3).pulse();
    pic.line(7).pulse();
    EXPECT_EQ(pic.acknowledge(), 0x37) << "3 is lowest, 4 highest";
    out8(master, 0, 0xc6);  // 6 is lowest
    out8(master, 0, 0x67);
    pic.line(7).pulse();
    EXPECT_EQ(pic.acknowledge(), 0x37);
}

TEST_F(PicTest, SpecialMaskModeLetsLowerOnesThrough) {
    initialize();
    pic.line(1).pulse();
    EXPECT_EQ(pic.acknowledge(), 0x31);
    pic.line(6).pulse();
    EXPECT_FALSE(intr.is_up());
    out8(master, 1, 0x02);
    out8(master, 0, 0x68);
    EXPECT_EQ(pic.acknowledge(), 0x36);
    out8(master, 0, 0x20);
    EXPECT_EQ(isr(master), 0x02) << "a masked one is not ended unnamed";
    out8(master, 0, 0x48);
    out8(master, 0, 0x20);
    EXPECT_EQ(isr(master), 0);
}

TEST_F(PicTest, SpecialFullyNestedModeLetsTheSecondChipInterruptItself) {
    initialize(0x11);
    pic.line(13).pulse();
    EXPECT_EQ(pic.acknowledge(), 0x3d);
    pic.line(8).pulse();
    EXPECT_EQ(pic.acknowledge(), 0x38);
    pic.line(3).pulse();
    EXPECT_FALSE(intr.is_up()) << "lower ones of the first chip wait";
}

TEST_F(PicTest, APollIsAnAcknowledgeOfOneChip) {
    initialize();
    out8(slave, 0, 0x0c);
    EXPECT_EQ(in8(slave), 0x00);
    pic.line(10).pulse();
    out8(slave, 0, 0x0c);
    EXPECT_EQ(in8(slave, 1), 0x82);
    EXPECT_EQ(isr(slave), 0x04);
    EXPECT_FALSE(intr.is_up());
    EXPECT_EQ(in8(slave, 1), 0x00) << "one read only: the mask again";
}

TEST_F(PicTest, ACommandWordWithoutTheThirdOrFourthOneEndsEarlier) {
    out8(master, 0, 0x12);  // single, no ICW4
    out8(master, 1, 0x47);
    out8(master, 1, 0xfe);  // a mask already
    pic.line(0).pulse();
    EXPECT_EQ(pic.acknowledge(), 0x40);
    EXPECT_EQ(in8(master, 1), 0xfe);
}

TEST_F(PicTest, EveryOffsetAndWidthIsAnswered) {
    for (IoDevice* window : {&master, &slave, &elcr})
        for (const unsigned value : {0x00U, 0x11U, 0x0cU, 0xffU})
            testing::touch_all(*window, 2, static_cast<std::uint8_t>(value));
    initialize();
    pic.line(6).pulse();
    EXPECT_EQ(testing::read_register<std::uint32_t>(master, 2), 0xffff'ffffU);
}

TEST_F(PicTest, ThreadsMayMeetInIt) {
    initialize(0x03);
    std::vector<std::jthread> threads;
    for (const unsigned input : {1U, 9U, 15U})
        threads.emplace_back([this, input] {
            for (int i = 0; i < 2000; ++i) pic.line(input).pulse();
        });
    for (int i = 0; i < 2000; ++i) {
        const std::uint8_t vector = pic.acknowledge();
        EXPECT_GE(vector, 0x30);
        EXPECT_LT(vector, 0x40);
    }
    threads.clear();
    for (int i = 0; i < 16; ++i) (void)pic.acknowledge();
    EXPECT_FALSE(intr.is_up());
}

/// The data sheet as a list of inputs, highest first.
struct NaiveChip {
    struct Input {
        bool is_up = false;
        bool is_latched = false;
        bool is_served = false;
        bool is_masked = false;
        bool is_level = false;
    };
    std::array<Input, 8> inputs{};
    std::array<unsigned, 8> order{0, 1, 2, 3, 4, 5, 6, 7};
    bool is_master = false;
    bool has_auto_eoi = false, has_rotation = false, has_special_mask = false, has_nesting = false;
    bool shows_served = false, is_polled = false;
    unsigned base = 0;
    std::vector<int> awaited{-1};  ///< command words still to come; -1: never begun

    bool wants(unsigned i) const { return inputs[i].is_level ? inputs[i].is_up : inputs[i].is_latched; }
    std::optional<unsigned> winner() const {
        if (!awaited.empty()) return std::nullopt;
        for (const unsigned i : order) {
            const bool is_own_cascade = is_master && has_nesting && i == 2;
            const bool blocks = inputs[i].is_served && !(has_special_mask && inputs[i].is_masked);
            if (blocks && !is_own_cascade) return std::nullopt;
            if (wants(i) && !inputs[i].is_masked) return i;
            if (blocks) return std::nullopt;
        }
        return std::nullopt;
    }
    void put_last(unsigned i) {
        while (order.back() != i) std::ranges::rotate(order, order.begin() + 1);
    }
    unsigned take() {
        const auto i = winner();
        if (!i) return 7;
        inputs[*i].is_latched = false;
        if (!has_auto_eoi) inputs[*i].is_served = true;
        if (has_auto_eoi && has_rotation) put_last(*i);
        return *i;
    }
    void set(unsigned i, bool is_up) {
        if (is_up && !inputs[i].is_up && !inputs[i].is_level) inputs[i].is_latched = true;
        inputs[i].is_up = is_up;
    }
    void end_first(bool is_rotating) {
        const auto present = order;
        for (const unsigned i : present) {
            if (!inputs[i].is_served || (has_special_mask && inputs[i].is_masked)) continue;
            inputs[i].is_served = false;
            if (is_rotating) put_last(i);
            return;
        }
    }
    unsigned read(bool is_odd) {
        if (is_polled) {
            is_polled = false;
            return winner() ? 0x80 | take() : 0;
        }
        unsigned value = 0;
        for (unsigned i = 0; i < 8; ++i) {
            const bool bit = is_odd ? inputs[i].is_masked : shows_served ? inputs[i].is_served : wants(i);
            value |= (bit ? 1U : 0U) << i;
        }
        return value;
    }
    void write(bool is_odd, unsigned value) {
        if (is_odd) return write_odd(value);
        if ((value & 0x10) != 0) {
            for (Input& input : inputs) input.is_latched = input.is_served = input.is_masked = false;
            order = {0, 1, 2, 3, 4, 5, 6, 7};
            has_auto_eoi = has_rotation = has_special_mask = has_nesting = shows_served = is_polled = false;
            awaited = {2};
            if ((value & 2) == 0) awaited.push_back(3);
            if ((value & 1) != 0) awaited.push_back(4);
        } else if ((value & 0x08) != 0) {
            if ((value & 0x60) == 0x60) has_special_mask = true;
            if ((value & 0x60) == 0x40) has_special_mask = false;
            if ((value & 3) == 3) shows_served = true;
            if ((value & 3) == 2) shows_served = false;
            is_polled = (value & 4) != 0;
        } else {
            const bool is_rotating = (value & 0x80) != 0, is_named = (value & 0x40) != 0;
            const bool is_eoi = (value & 0x20) != 0;
            if (is_eoi && !is_named) end_first(is_rotating);
            if (is_eoi && is_named) inputs[value & 7].is_served = false;
            if (is_named && is_rotating) put_last(value & 7);
            if (!is_eoi && !is_named) has_rotation = is_rotating;
        }
    }
    void write_odd(unsigned value) {
        if (awaited.empty() || awaited.front() < 0) {
            for (unsigned i = 0; i < 8; ++i) inputs[i].is_masked = (value >> i & 1) != 0;
            return;
        }
        if (awaited.front() == 2) base = value & 0xf8;
        if (awaited.front() == 4) has_auto_eoi = (value & 2) != 0, has_nesting = (value & 0x10) != 0;
        awaited.erase(awaited.begin());
    }
    void set_levels(unsigned value, unsigned allowed) {
        for (unsigned i = 0; i < 8; ++i) {
            if ((allowed >> i & 1) == 0) continue;
            inputs[i].is_level = (value >> i & 1) != 0;
            if (inputs[i].is_level) inputs[i].is_latched = false;
        }
    }
};

struct NaivePic {
    std::array<NaiveChip, 2> chips;
    NaivePic() {
        chips[0].is_master = true;
        chips[0].inputs[2].is_level = true;
    }
    bool settle() {
        chips[0].inputs[2].is_up = chips[1].winner().has_value();
        return chips[0].winner().has_value();
    }
    unsigned take() {
        const bool is_real = chips[0].winner().has_value();
        const unsigned i = chips[0].take();
        if (is_real && i == 2) return chips[1].base | chips[1].take();
        return chips[0].base | i;
    }
};

TEST(Pic, AgreesWithANaiveModel) {
    for (unsigned seed = 1; seed <= 40; ++seed) {
        SCOPED_TRACE(seed);
        std::mt19937 random{seed};
        const auto below = [&random](unsigned limit) { return static_cast<unsigned>(random() % limit); };
        RecordingLine intr;
        Pic pic{intr};
        NaivePic naive;
        std::array<IoDevice*, 2> ports{&pic.master_ports(), &pic.slave_ports()};
        for (int step = 0; step < 3000; ++step) {
            const unsigned which = below(2), value = below(256);
            switch (below(seed % 2 == 0 ? 8 : 7)) {
                case 0:
                case 1: {
                    const unsigned input = below(16);
                    const bool is_up = below(2) != 0;
                    pic.line(input).set(is_up);
                    if (input != 2) naive.chips[input / 8].set(input % 8, is_up);
                    break;
                }
                case 2: ASSERT_EQ(pic.acknowledge(), naive.take()) << step; break;
                case 3: {  // mostly not the beginning of an initialization
                    const unsigned word = below(20) != 0 ? value & ~0x10U : value;
                    out8(*ports[which], 0, word);
                    naive.chips[which].write(false, word);
                    break;
                }
                case 4: {
                    const unsigned word = naive.chips[which].awaited.empty() ? value & below(256) : value;
                    out8(*ports[which], 1, word);
                    naive.chips[which].write(true, word);
                    break;
                }
                case 5: {
                    const bool is_odd = below(2) != 0;
                    ASSERT_EQ(in8(*ports[which], is_odd ? 1 : 0), naive.chips[which].read(is_odd)) << step;
                    break;
                }
                case 6:
                    out8(*ports[which], 0, 0x20);
                    naive.chips[which].write(false, 0x20);
                    break;
                default:
                    out8(pic.elcr_ports(), which, value);
                    naive.chips[which].set_levels(value, which == 0 ? 0xf8 : 0xde);
                    break;
            }
            ASSERT_EQ(naive.settle(), intr.is_up()) << step;
            ASSERT_EQ(pic.is_requesting(), intr.is_up()) << step;
        }
        EXPECT_GT(intr.count_raised(), 20U);
    }
}

}  // namespace
}  // namespace guestmem::vmm
