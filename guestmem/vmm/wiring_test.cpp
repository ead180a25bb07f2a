// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/wiring.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <memory>
#include <utility>

#include "guestmem/vmm/testing/real_mode_machine.hpp"

namespace guestmem::vmm {
namespace {

class WiringTest : public ::testing::Test {
protected:
    void SetUp() override {
        if (!machine_.start()) GTEST_SKIP() << "SKIPPED: " << machine_.why;
        ASSERT_TRUE(machine_.machine->enable_split_irqchip(24));
        interrupts_ = KvmInterrupts::create(*machine_.machine, 24, [](const Error& error) {
                          ADD_FAILURE() << error.message();
                      }).value();
        wiring_ = std::make_unique<Wiring>(*interrupts_, [this] { ++notices_; });
    }
    /// ICW1 to ICW4 of the first chip, all inputs open.
    void start_pic() {
        for (const auto& [port, value] :
             {std::pair{0U, 0x11U}, {1U, 0x20U}, {1U, 0x04U}, {1U, 0x01U}, {1U, 0x00U}}) {
            const std::array<std::byte, 1> byte{static_cast<std::byte>(value)};
            wiring_->pic()->master_ports().write(port, byte);
        }
    }

    testing::RealModeMachine machine_;
    std::unique_ptr<KvmInterrupts> interrupts_;
    std::unique_ptr<Wiring> wiring_;
    int notices_ = 0;
};

TEST_F(WiringTest, AnIsaInterruptIsSeenByTheOldControllers) {
    start_pic();
    const auto wire = wiring_->wire(4);
    wire->set(true);
    EXPECT_EQ(notices_, 1);
    EXPECT_TRUE(wiring_->has_interrupt());
    EXPECT_EQ(wiring_->pic()->acknowledge(), 0x24);
    wire->set(false);
    EXPECT_FALSE(wiring_->has_interrupt());
}

TEST_F(WiringTest, ASharedPinIsUpWhileAnyOfItsDevicesIs) {
    start_pic();
    const std::array<std::byte, 1> level{std::byte{1U << 5}};
    wiring_->pic()->elcr_ports().write(0, level);
    const auto one = wiring_->wire(5);
    const auto other = wiring_->wire(5);
    one->set(true);
    other->set(true);
    other->set(false);
    EXPECT_TRUE(wiring_->has_interrupt());
    one->set(false);
    EXPECT_FALSE(wiring_->has_interrupt());
}

TEST_F(WiringTest, PinsFromSixteenOnAreTheIoApicsAlone) {
    start_pic();
    const auto wire = wiring_->wire(16);
    wire->set(true);
    EXPECT_EQ(notices_, 0);
    EXPECT_FALSE(wiring_->has_interrupt());
}

TEST_F(WiringTest, ARouteOfTheIoApicReachesTheKernel) {
    const auto wire = wiring_->wire(5);
    const auto write = [&](std::uint32_t select, std::uint32_t value) {
        std::array<std::byte, 4> bytes{};
        std::memcpy(bytes.data(), &select, 4);
        wiring_->io_apic().write(0x00, bytes);
        std::memcpy(bytes.data(), &value, 4);
        wiring_->io_apic().write(0x10, bytes);
    };
    write(0x1b, 0);
    write(0x1a, 0x30);
    wire->pulse();
    write(0x1a, 0x10030);
}

}  // namespace
}  // namespace guestmem::vmm
