// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/devices/io_apic.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "guestmem/vmm/devices/testing/ports.hpp"
#include "guestmem/vmm/devices/testing/recording_output.hpp"

namespace guestmem::vmm {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr std::uint32_t masked = 0x1'0000;
constexpr std::uint32_t level = 0x8000;
constexpr std::uint32_t remote_irr = 0x4000;

class IoApicTest : public ::testing::Test {
protected:
    testing::RecordingOutput output;
    IoApic chip{output, 2};

    std::uint32_t read(std::uint8_t index) {
        testing::write_register<std::uint32_t>(chip, 0x00, index);
        return testing::read_register<std::uint32_t>(chip, 0x10);
    }
    void write(unsigned index, std::uint32_t value) {
        testing::write_register<std::uint32_t>(chip, 0x00, index);
        testing::write_register<std::uint32_t>(chip, 0x10, value);
    }
    std::uint32_t entry(unsigned pin) { return read(static_cast<std::uint8_t>(0x10 + 2 * pin)); }
    void write_entry(unsigned pin, std::uint32_t low) { write(0x10 + 2 * pin, low); }
    void write_target(unsigned pin, std::uint32_t apic) { write(0x11 + 2 * pin, apic << 24U); }
};

TEST_F(IoApicTest, SaysWhatItIs) {
    EXPECT_EQ(read(0), 0x0200'0000U);
    EXPECT_EQ(read(1), 0x0017'0020U);
    EXPECT_EQ(read(2), 0x0200'0000U);
    write(0, 0xffff'ffffU);
    EXPECT_EQ(read(0), 0x0f00'0000U);
    EXPECT_EQ(read(3), 0xffff'ffffU);
    EXPECT_EQ(read(0x40), 0xffff'ffffU) << "24 pins end there";
    for (unsigned pin = 0; pin < IoApic::pin_count; ++pin) EXPECT_EQ(entry(pin), masked);
}

TEST_F(IoApicTest, AnEntryBecomesTheMessageThatKvmMakesOfIt) {
    write_target(4, 3);
    EXPECT_EQ(output.route_count, 0U) << "masked";
    write_entry(4, 0x31);
    EXPECT_EQ(output.routes.at(4), (MsiMessage{.address = 0xfee0'3000, .data = 0x31}));
    write_entry(4, 0x0931);
    EXPECT_EQ(output.routes.at(4), (MsiMessage{.address = 0xfee0'3004, .data = 0x131}));
    write_entry(4, level | 0x31);
    EXPECT_EQ(output.routes.at(4), (MsiMessage{.address = 0xfee0'3000, .data = 0xc031}));
    write_target(4, 0xff);
    EXPECT_EQ(output.routes.at(4), (MsiMessage{.address = 0xfeef'f000, .data = 0xc031}));
    write_entry(4, masked);
    EXPECT_FALSE(output.routes.at(4));
}

TEST_F(IoApicTest, ARefusedRouteIsAskedForAgainAndSendsNothingElseMeanwhile) {
    write_entry(4, 0x31);
    output.is_refusing = true;
    write_entry(4, 0x42);
    chip.line(4).pulse();
    EXPECT_THAT(output.delivered, IsEmpty()) << "the old vector is not the entry's";
    write_entry(10, level | 0x50);
    chip.line(10).set(true);
    EXPECT_EQ(entry(10), level | 0x50) << "nobody would tell of its end";
    output.is_refusing = false;
    chip.line(4).pulse();
    EXPECT_THAT(output.delivered, ElementsAre(MsiMessage{.address = 0xfee0'0000, .data = 0x42}));
    write_target(10, 0);
    EXPECT_EQ(entry(10), level | remote_irr | 0x50);
    EXPECT_THAT(output.delivered, SizeIs(2));
}

TEST_F(IoApicTest, ARouteThatCannotBeTakenAwayIsTriedAgain) {
    write_entry(4, 0x31);
    output.is_refusing = true;
    write_entry(4, masked | 0x31);
    chip.line(4).pulse();
    EXPECT_THAT(output.delivered, IsEmpty());
    EXPECT_TRUE(output.routes.at(4));
    output.is_refusing = false;
    write_entry(4, masked | 0x31);
    EXPECT_FALSE(output.routes.at(4));
}

TEST_F(IoApicTest, AnEdgeIsOneKickAndWhileMaskedNone) {
    chip.line(4).pulse();
    write_entry(4, 0x31);
    EXPECT_THAT(output.delivered, IsEmpty()) << "data sheet: ignored, not held pending";
    chip.line(4).set(true);
    chip.line(4).set(true);
    EXPECT_THAT(output.delivered, SizeIs(1));
    chip.line(4).set(false);
    chip.line(4).set(true);
    EXPECT_THAT(output.delivered, SizeIs(2));
    EXPECT_EQ(entry(4), 0x31U);
}

TEST_F(IoApicTest, ALevelIsDeliveredAgainAtItsEndWhileItsLineIsUp) {
    write_entry(10, level | 0x42);
    chip.line(10).set(true);
    EXPECT_EQ(entry(10), level | remote_irr | 0x42);
    chip.line(10).set(false);
    chip.line(10).set(true);
    EXPECT_THAT(output.delivered, SizeIs(1)) << "it is being served";
    chip.end_of_interrupt(0x41);
    EXPECT_THAT(output.delivered, SizeIs(1)) << "another vector";
    chip.end_of_interrupt(0x42);
    EXPECT_THAT(output.delivered, SizeIs(2));
    chip.line(10).set(false);
    chip.end_of_interrupt(0x42);
    EXPECT_THAT(output.delivered, SizeIs(2));
    EXPECT_EQ(entry(10), level | 0x42);
}

TEST_F(IoApicTest, ALevelThatIsUpIsDeliveredWhenItIsUnmasked) {
    write_entry(10, masked | level | 0x42);
    chip.line(10).set(true);
    EXPECT_THAT(output.delivered, IsEmpty());
    write_entry(10, level | 0x42);
    EXPECT_THAT(output.delivered, ElementsAre(MsiMessage{.address = 0xfee0'0000, .data = 0xc042}));
}

TEST_F(IoApicTest, AMaskWhileServedKeepsTheRouteUntilTheEnd) {
    // A threaded handler of Linux masks, ends, works and unmasks.
    write_entry(10, level | 0x42);
    chip.line(10).set(true);
    write_entry(10, masked | level | 0x42);
    EXPECT_TRUE(output.routes.at(10)) << "without it the kernel would not tell of the end";
    chip.end_of_interrupt(0x42);
    EXPECT_FALSE(output.routes.at(10));
    EXPECT_THAT(output.delivered, SizeIs(1));
    write_entry(10, level | 0x42);
    EXPECT_THAT(output.delivered, SizeIs(2));
}

TEST_F(IoApicTest, TheEoiRegisterEndsAsTheLocalApicDoes) {
    write_entry(10, level | 0x42);
    chip.line(10).set(true);
    testing::write_register<std::uint32_t>(chip, 0x40, 0x42);
    EXPECT_THAT(output.delivered, SizeIs(2));
    EXPECT_EQ(testing::read_register<std::uint32_t>(chip, 0x40), 0xffff'ffffU);
}

TEST_F(IoApicTest, WritingAnEntryAsEdgeEndsItByHand) {
    write_entry(10, level | 0x42);
    chip.line(10).set(true);
    chip.line(10).set(false);
    write_entry(10, masked | 0x42);
    EXPECT_EQ(entry(10), masked | 0x42);
    EXPECT_FALSE(output.routes.at(10));
    write_entry(10, masked | level | 0x42);
    EXPECT_EQ(entry(10), masked | level | 0x42);
}

TEST_F(IoApicTest, ThePolarityIsKeptAndHasNoEffect) {
    write_entry(9, level | 0x2000 | 0x50);
    EXPECT_EQ(entry(9), level | 0x2000 | 0x50);
    EXPECT_THAT(output.delivered, IsEmpty());
    chip.line(9).set(true);
    EXPECT_THAT(output.delivered, SizeIs(1));
}

TEST_F(IoApicTest, ModesThatDeliverNothing) {
    for (const std::uint32_t mode : {3U, 6U, 7U}) {
        write_entry(0, mode << 8U | 0x31);
        chip.line(0).pulse();
        write_entry(0, level | mode << 8U | 0x31);
        chip.line(0).pulse();
    }
    EXPECT_EQ(output.route_count, 0U);
    EXPECT_THAT(output.delivered, IsEmpty());
}

TEST_F(IoApicTest, AnNmiHasNoEndAndIsAnEdge) {
    write_entry(0, level | 0x0400);
    chip.line(0).pulse();
    chip.line(0).pulse();
    EXPECT_THAT(output.delivered, SizeIs(2));
    EXPECT_EQ(output.delivered.front().data, 0x400U);
    EXPECT_EQ(entry(0) & remote_irr, 0U);
}

TEST_F(IoApicTest, ReservedAndReadOnlyBitsCannotBeSet) {
    write_entry(23, 0xffff'ffffU);
    EXPECT_EQ(entry(23), 0x1'afffU);
    write(0x11 + 2 * 23, 0xffff'ffffU);
    EXPECT_EQ(read(0x11 + 2 * 23), 0xff00'0000U);
}

TEST_F(IoApicTest, NarrowAndWideAccessesBeginAtARegister) {
    testing::write_register<std::uint8_t>(chip, 0x00, 1);
    EXPECT_EQ(testing::read_register<std::uint8_t>(chip, 0x10), 0x20);
    EXPECT_EQ(testing::read_register<std::uint16_t>(chip, 0x10), 0x0020);
    EXPECT_EQ(testing::read_register<std::uint64_t>(chip, 0x10), 0xffff'ffff'0017'0020ULL);
    EXPECT_EQ(testing::read_register<std::uint32_t>(chip, 0x12), 0xffff'ffffU);
    EXPECT_EQ(testing::read_register<std::uint32_t>(chip, 0x20), 0xffff'ffffU);
    for (const unsigned value : {0x00U, 0x10U, 0x3fU, 0xffU})
        testing::touch_all(chip, IoApic::window_bytes, static_cast<std::uint8_t>(value));
    EXPECT_EQ(read(1), 0x0017'0020U);
}

TEST_F(IoApicTest, ThreadsMayMeetInIt) {
    for (unsigned pin = 0; pin < 4; ++pin) write_entry(pin, (pin % 2 != 0 ? level : 0) | (0x30 + pin));
    {
        std::vector<std::jthread> threads;
        for (unsigned pin = 0; pin < 4; ++pin)
            threads.emplace_back([this, pin] {
                for (int i = 0; i < 1000; ++i) {
                    chip.line(pin).pulse();
                    chip.end_of_interrupt(static_cast<std::uint8_t>(0x30 + pin));
                }
            });
        for (int i = 0; i < 1000; ++i) {
            write_entry(0, masked | 0x30);
            write_entry(0, 0x30);
        }
    }
    EXPECT_EQ(entry(0), 0x30U);
    EXPECT_EQ(entry(1), level | 0x31U);
    EXPECT_GE(output.delivered.size(), 3000U) << "pins 1 to 3 were never masked";
}

}  // namespace
}  // namespace guestmem::vmm
