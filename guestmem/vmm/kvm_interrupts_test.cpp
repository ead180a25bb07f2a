// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/kvm_interrupts.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "guestmem/sys/faults.hpp"
#include "guestmem/vmm/testing/real_mode_machine.hpp"

namespace guestmem::vmm {
namespace {

constexpr MsiMessage message{.address = 0xfee00000, .data = 0x31};

class KvmInterruptsTest : public ::testing::Test {
protected:
    void SetUp() override {
        if (!machine_.start()) GTEST_SKIP() << "SKIPPED: " << machine_.why;
        ASSERT_TRUE(machine_.machine->enable_split_irqchip(24));
        auto made = KvmInterrupts::create(
            *machine_.machine, 24, [this](const Error& error) { complaints_ += error.message() + "\n"; });
        ASSERT_TRUE(made) << made.error().message();
        interrupts_ = *std::move(made);
    }

    /// Whether the kernel takes kicks out of the eventfd: it is an irqfd.
    static bool is_taken(const EventFd& bell) {
        EXPECT_TRUE(bell.ring());
        for (int tries = 0; tries < 1000; ++tries) {
            if (*bell.pending() == 0) return true;
            std::this_thread::sleep_for(std::chrono::milliseconds{1});
            if (tries > 20 && *bell.pending() == 1) return false;
        }
        return false;
    }

    testing::RealModeMachine machine_;
    std::string complaints_;
    std::unique_ptr<KvmInterrupts> interrupts_;
};

TEST_F(KvmInterruptsTest, AMaskedMessageKeepsItsKicksAndAnUnmaskedOneGivesThemAway) {
    const EventFd bell = EventFd::create().value();
    const auto interrupt = interrupts_->connect(bell.view());
    ASSERT_TRUE(interrupt);
    EXPECT_FALSE(is_taken(bell));
    ASSERT_TRUE((*interrupt)->unmask(message));
    // The kick from before is taken by the call or shortly after it.
    for (int tries = 0; tries < 2000 && *bell.pending() != 0; ++tries) {
        std::this_thread::sleep_for(std::chrono::milliseconds{1});
    }
    EXPECT_EQ(*bell.pending(), 0U);
    ASSERT_TRUE((*interrupt)->mask());
    EXPECT_FALSE(is_taken(bell));
    EXPECT_EQ(complaints_, "");
}

TEST_F(KvmInterruptsTest, WhatIsDestroyedIsNoInterruptAnyMore) {
    const EventFd bell = EventFd::create().value();
    auto interrupt = *interrupts_->connect(bell.view());
    ASSERT_TRUE(interrupt->unmask(message));
    interrupt.reset();
    EXPECT_FALSE(is_taken(bell));
    EXPECT_EQ(complaints_, "");
}

TEST_F(KvmInterruptsTest, NumbersAreGivenAgainAndEndWithAnError) {
    const EventFd bell = EventFd::create().value();
    std::vector<std::unique_ptr<MsiInterrupt>> all;
    for (;;) {
        auto made = interrupts_->connect(bell.view());
        if (!made) {
            EXPECT_EQ(made.error().code(), Errc::exhausted);
            break;
        }
        all.push_back(*std::move(made));
    }
    EXPECT_EQ(all.size(), KvmInterrupts::max_gsis - 24);
    all.erase(all.begin() + 7);
    EXPECT_TRUE(interrupts_->connect(bell.view()));
}

TEST_F(KvmInterruptsTest, WhatTheKernelRefusesIsSaidAndCanBeTriedAgain) {
    const EventFd bell = EventFd::create().value();
    const auto interrupt = *interrupts_->connect(bell.view());
    for (const std::uint64_t nth : {0U, 1U}) {
        const FaultInjector injector{nth, {.only = SysCall::ioctl}};
        EXPECT_FALSE(interrupt->unmask(message)) << nth;
    }
    EXPECT_TRUE(interrupt->unmask(message));
    {
        const FaultInjector injector{0, {.only = SysCall::ioctl}};
        interrupts_->route_pin(4, message);
    }
    EXPECT_NE(complaints_.find("pin 4"), std::string::npos) << complaints_;
}

TEST_F(KvmInterruptsTest, APinOfNobodyIsNothing) {
    interrupts_->fire_pin(24);
    interrupts_->route_pin(3, message);
    interrupts_->fire_pin(3);
    interrupts_->route_pin(3, std::nullopt);
    EXPECT_EQ(complaints_, "");
}

}  // namespace
}  // namespace guestmem::vmm
