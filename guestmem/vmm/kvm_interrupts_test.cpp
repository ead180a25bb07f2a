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

TEST_F(KvmInterruptsTest, FurtherEventfdsAreTheSameMessageWhileItIsUnmasked) {
    const EventFd bell = EventFd::create().value();
    const EventFd early = EventFd::create().value();
    const EventFd late = EventFd::create().value();
    const auto interrupt = *interrupts_->connect(bell.view());
    ASSERT_TRUE(interrupt->add(early.view()));
    EXPECT_FALSE(is_taken(early)) << "masked";
    ASSERT_TRUE(interrupt->unmask(message));
    ASSERT_TRUE(interrupt->add(late.view()));
    EXPECT_TRUE(is_taken(bell));
    EXPECT_TRUE(is_taken(early));
    EXPECT_TRUE(is_taken(late));
    interrupt->remove(late.view());
    EXPECT_FALSE(is_taken(late));
    ASSERT_TRUE(interrupt->mask());
    EXPECT_FALSE(is_taken(early));
    interrupt->remove(early.view());
    ASSERT_TRUE(interrupt->unmask(message));
    EXPECT_FALSE(is_taken(early));
    EXPECT_TRUE(is_taken(bell));
    EXPECT_EQ(complaints_, "");
}

TEST_F(KvmInterruptsTest, AnAddedEventfdThatTheKernelRefusesTakesNothingFromTheOthersAndIsTriedAgain) {
    const EventFd bell = EventFd::create().value();
    const EventFd other = EventFd::create().value();
    const EventFd last = EventFd::create().value();
    const auto interrupt = *interrupts_->connect(bell.view());
    ASSERT_TRUE(interrupt->add(other.view()));
    ASSERT_TRUE(interrupt->add(last.view()));
    for (int round = 0; round < 2; ++round) {
        // The first time the route, then the first eventfd, then this one.
        const FaultInjector injector{round == 0 ? 2U : 1U, {.only = SysCall::ioctl}};
        EXPECT_TRUE(interrupt->unmask(message));
        EXPECT_TRUE(injector.has_fired());
        EXPECT_TRUE(is_taken(bell));
        EXPECT_TRUE(is_taken(last));
        EXPECT_FALSE(is_taken(other));
        ASSERT_TRUE(interrupt->mask());
        EXPECT_TRUE(other.drain());
    }
    EXPECT_EQ(complaints_.find("one of several eventfds"), complaints_.rfind("one of several eventfds"));
    EXPECT_NE(complaints_, "");
    EXPECT_TRUE(interrupt->unmask(message));
    EXPECT_TRUE(is_taken(other));
    {
        const EventFd third = EventFd::create().value();
        const FaultInjector injector{0, {.only = SysCall::ioctl}};
        EXPECT_FALSE(interrupt->add(third.view()));
    }
    EXPECT_TRUE(is_taken(bell));
    EXPECT_TRUE(is_taken(other));
}

TEST_F(KvmInterruptsTest, TheOwnEventfdThatTheKernelRefusesLeavesTheOthersMasked) {
    const EventFd bell = EventFd::create().value();
    const EventFd other = EventFd::create().value();
    const auto interrupt = *interrupts_->connect(bell.view());
    ASSERT_TRUE(interrupt->add(other.view()));
    {
        const FaultInjector injector{1, {.only = SysCall::ioctl}};
        EXPECT_FALSE(interrupt->unmask(message));
        EXPECT_TRUE(injector.has_fired());
    }
    EXPECT_FALSE(is_taken(bell));
    EXPECT_FALSE(is_taken(other));
}

TEST_F(KvmInterruptsTest, AnEventfdThatAnotherMachineBoundTakesNothingFromTheOthers) {
    const EventFd bell = EventFd::create().value();
    const EventFd shared = EventFd::create().value();
    auto hostile = machine_.system->create_machine();
    ASSERT_TRUE(hostile) << hostile.error().message();
    ASSERT_TRUE(hostile->enable_split_irqchip(24));
    ASSERT_TRUE(hostile->connect_irqfd(shared.view(), 5));
    const auto interrupt = *interrupts_->connect(bell.view());
    ASSERT_TRUE(interrupt->add(shared.view()));
    EXPECT_TRUE(interrupt->unmask(message)) << complaints_;
    EXPECT_TRUE(is_taken(bell));
    if (complaints_.empty())
        GTEST_SKIP() << "SKIPPED: this kernel gives an eventfd to two machines: it refuses nothing here";
    ASSERT_TRUE(interrupt->mask());
    ASSERT_TRUE(hostile->disconnect_irqfd(shared.view(), 5));
    EXPECT_FALSE(is_taken(shared));
    EXPECT_TRUE(interrupt->unmask(message));
    EXPECT_TRUE(is_taken(shared)) << "it was tried again";
}

TEST_F(KvmInterruptsTest, AnEventfdThatTheKernelDoesNotLetGoOfIsTriedAgainAndSaid) {
    const EventFd bell = EventFd::create().value();
    const EventFd other = EventFd::create().value();
    const EventFd kept = EventFd::create().value();
    const auto interrupt = *interrupts_->connect(bell.view());
    ASSERT_TRUE(interrupt->add(other.view()));
    ASSERT_TRUE(interrupt->add(kept.view()));
    ASSERT_TRUE(interrupt->unmask(message));
    {
        const FaultInjector injector{0, {.only = SysCall::ioctl}};
        interrupt->remove(other.view());
        EXPECT_TRUE(injector.has_fired());
    }
    EXPECT_FALSE(is_taken(other));
    EXPECT_EQ(complaints_, "");
    {
        const FaultInjector injector{0, {.only = SysCall::ioctl, .repeat = 2}};
        interrupt->remove(kept.view());
    }
    EXPECT_NE(complaints_.find("stays this message"), std::string::npos) << complaints_;
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
        EXPECT_FALSE(interrupts_->route_pin(4, message));
    }
    EXPECT_NE(complaints_.find("pin 4"), std::string::npos) << complaints_;
}

TEST_F(KvmInterruptsTest, APinOfNobodyIsNothing) {
    interrupts_->fire_pin(24);
    EXPECT_TRUE(interrupts_->route_pin(3, message));
    interrupts_->fire_pin(3);
    EXPECT_TRUE(interrupts_->route_pin(3, std::nullopt));
    EXPECT_EQ(complaints_, "");
}

TEST_F(KvmInterruptsTest, WhatIsExpectedOfManyIsOneTableOfRoutes) {
    constexpr std::uint32_t count = 64;
    std::vector<EventFd> bells;
    std::vector<std::unique_ptr<MsiInterrupt>> all;
    for (std::uint32_t number = 0; number < count; ++number) {
        bells.push_back(EventFd::create().value());
        all.push_back(*interrupts_->connect(bells.back().view()));
    }
    {
        // A table, and an irqfd for each: no call more.
        const FaultInjector injector{count + 1, {.only = SysCall::ioctl}};
        for (std::uint32_t number = 0; number < count; ++number)
            all[number]->expect({.address = 0xfee00000, .data = 0x40 + number});
        for (std::uint32_t number = 0; number < count; ++number)
            ASSERT_TRUE(all[number]->unmask({.address = 0xfee00000, .data = 0x40 + number}));
        EXPECT_FALSE(injector.has_fired());
    }
    {
        // Off and on again as they were: the routes are there still.
        const FaultInjector injector{2 * count, {.only = SysCall::ioctl}};
        for (const auto& one : all) ASSERT_TRUE(one->mask());
        for (std::uint32_t number = 0; number < count; ++number)
            ASSERT_TRUE(all[number]->unmask({.address = 0xfee00000, .data = 0x40 + number}));
        EXPECT_FALSE(injector.has_fired());
    }
    for (const EventFd& bell : bells) EXPECT_TRUE(is_taken(bell));
}

TEST_F(KvmInterruptsTest, AnExpectedMessageThatCannotBeHoldsNoOtherBack) {
    const EventFd bell = EventFd::create().value();
    const EventFd other_bell = EventFd::create().value();
    const auto interrupt = *interrupts_->connect(bell.view());
    const auto other = *interrupts_->connect(other_bell.view());
    other->expect({.address = 0xfee00000, .data = 0x77});
    {
        const FaultInjector injector{0, {.only = SysCall::ioctl}};
        EXPECT_TRUE(interrupt->unmask(message)) << "by a table of its own";
    }
    EXPECT_TRUE(is_taken(bell));
    EXPECT_FALSE(is_taken(other_bell));
}

TEST_F(KvmInterruptsTest, AMaskThatTheKernelRefusesIsTriedAgain) {
    const EventFd bell = EventFd::create().value();
    const auto interrupt = *interrupts_->connect(bell.view());
    ASSERT_TRUE(interrupt->unmask(message));
    {
        const FaultInjector injector{0, {.only = SysCall::ioctl}};
        EXPECT_FALSE(interrupt->mask());
    }
    EXPECT_TRUE(is_taken(bell)) << "the kernel has it still";
    EXPECT_TRUE(interrupt->mask());
    EXPECT_FALSE(is_taken(bell));
}

TEST_F(KvmInterruptsTest, ANumberThatStaysConnectedIsNobodyElses) {
    const EventFd bell = EventFd::create().value();
    const EventFd other_bell = EventFd::create().value();
    auto interrupt = *interrupts_->connect(bell.view());
    ASSERT_TRUE(interrupt->unmask(message));
    {
        const FaultInjector injector{0, {.only = SysCall::ioctl, .repeat = 1000}};
        interrupt.reset();
    }
    EXPECT_NE(complaints_.find("stays connected"), std::string::npos) << complaints_;
    complaints_.clear();
    // One less than before, and what is left of the old one is in nobody's way.
    std::vector<std::unique_ptr<MsiInterrupt>> all;
    while (auto made = interrupts_->connect(other_bell.view())) all.push_back(*std::move(made));
    EXPECT_EQ(all.size(), KvmInterrupts::max_gsis - 24 - 1);
    EXPECT_TRUE(all.front()->unmask(message));
}

}  // namespace
}  // namespace guestmem::vmm
