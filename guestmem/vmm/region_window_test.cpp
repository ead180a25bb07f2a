// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/region_window.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>

#include "guestmem/sys/faults.hpp"
#include "guestmem/vmm/testing/real_mode_machine.hpp"

namespace guestmem::vmm {
namespace {

constexpr std::uint64_t base = std::uint64_t{4} << 30;
constexpr std::uint64_t step = RegionWindow::alignment;

class Silent final : public IoDevice {
public:
    void read(std::uint64_t /*offset*/, std::span<std::byte> data) override {
        std::ranges::fill(data, std::byte{7});
    }
    void write(std::uint64_t /*offset*/, std::span<const std::byte> /*data*/) override {}
};

class RegionWindowTest : public ::testing::Test {
protected:
    void SetUp() override {
        if (!machine_.start()) GTEST_SKIP() << "SKIPPED: " << machine_.why;
        memory_ = VmMemory::create(*machine_.system, machine_.machine, machine_.map).value();
        window_ =
            std::make_unique<RegionWindow>(*GuestRange::create(GuestAddress{base}, 4 * step), *memory_, bus_);
    }
    Result<GuestAddress> show(std::uint64_t size_bytes = 8192) {
        return window_->show("region", std::make_shared<Silent>(),
                             HostMemory::create_anonymous({.size_bytes = size_bytes}).value());
    }

    testing::RealModeMachine machine_;
    Bus bus_{"memory", ~std::uint64_t{0}};
    std::unique_ptr<VmMemory> memory_;
    std::unique_ptr<RegionWindow> window_;
};

TEST_F(RegionWindowTest, RegistersAreOnTheBusAndDataIsBehindThem) {
    const auto place = show();
    ASSERT_TRUE(place) << place.error().message();
    EXPECT_EQ(place->value(), base);
    std::array<std::byte, 4> word{};
    EXPECT_TRUE(bus_.read(base, word));
    EXPECT_EQ(word[0], std::byte{7});
    auto reader = memory_->make_reader("test");
    ASSERT_TRUE(reader);
    EXPECT_TRUE(reader->memory().load<std::uint32_t>(GuestAddress{base + 4096}));
    EXPECT_FALSE(reader->memory().load<std::uint32_t>(GuestAddress{base}));
}

TEST_F(RegionWindowTest, PlacesAreTheLowestThatAreFreeAndGivenAgain) {
    const auto first = show();
    const auto second = show(step);
    const auto third = show();
    ASSERT_TRUE(first && second && third);
    EXPECT_EQ(second->value(), base + step);
    EXPECT_EQ(third->value(), base + 3 * step) << "the second one's registers and data take two steps";
    ASSERT_TRUE(window_->hide(*first));
    std::array<std::byte, 4> word{};
    EXPECT_FALSE(bus_.read(base, word));
    const auto again = show();
    ASSERT_TRUE(again);
    EXPECT_EQ(again->value(), base);
}

TEST_F(RegionWindowTest, WhatDoesNotFitIsRefused) {
    EXPECT_FALSE(show(4 * step));
    for (int count = 0; count < 4; ++count) ASSERT_TRUE(show());
    const auto more = show();
    ASSERT_FALSE(more);
    EXPECT_EQ(more.error().code(), Errc::exhausted);
}

TEST_F(RegionWindowTest, WhatIsTakenByOthersIsPassedOver) {
    ASSERT_TRUE(bus_.add({.name = "BAR", .first = base + 4096, .count = 4096}));
    const auto plugged =
        Region::create({.name = "plugged",
                        .base = GuestAddress{base + step},
                        .memory = HostMemory::create_anonymous({.size_bytes = 4096}).value()});
    ASSERT_TRUE(plugged && memory_->insert(*plugged));
    const auto place = show();
    ASSERT_TRUE(place) << place.error().message();
    EXPECT_EQ(place->value(), base + 2 * step);
}

TEST_F(RegionWindowTest, NothingElseGetsAmongItsData) {
    ASSERT_TRUE(show());
    EXPECT_FALSE(bus_.add({.name = "BAR", .first = base + 8192, .count = 4096}));
    EXPECT_TRUE(bus_.add({.name = "BAR", .first = base + 3 * 4096, .count = 4096})) << "behind it";
}

TEST_F(RegionWindowTest, DataThatIsWithdrawnLeavesTheRegisters) {
    const auto place = show();
    ASSERT_TRUE(place);
    ASSERT_TRUE(window_->withdraw(*place));
    std::array<std::byte, 4> word{};
    EXPECT_TRUE(bus_.read(base, word));
    EXPECT_EQ(memory_->count_slots(), 1U);
    EXPECT_EQ(show()->value(), base + step) << "the place is taken still";
    ASSERT_TRUE(window_->hide(*place));
    EXPECT_FALSE(bus_.read(base, word));
    EXPECT_EQ(show()->value(), base);
}

TEST_F(RegionWindowTest, DataThatTheKernelKeepsHoldsItsPlaceUntilItGoes) {
    const auto place = show();
    ASSERT_TRUE(place);
    {
        const FaultInjector injector{0, {.only = SysCall::ioctl}};
        EXPECT_FALSE(window_->hide(*place));
    }
    std::array<std::byte, 4> word{};
    EXPECT_FALSE(bus_.read(base, word)) << "the registers are gone";
    EXPECT_EQ(memory_->count_slots(), 2U);
    EXPECT_FALSE(bus_.add({.name = "BAR", .first = base + 4096, .count = 4096})) << "the data is not";
    {
        const FaultInjector injector{0, {.only = SysCall::ioctl}};
        EXPECT_EQ(show()->value(), base + step);
    }
    EXPECT_EQ(show()->value(), base) << "the next change tries again";
}

TEST_F(RegionWindowTest, AFailureLeavesNothing) {
    {
        const FaultInjector injector{0, {.only = SysCall::ioctl}};
        EXPECT_FALSE(show());
    }
    EXPECT_TRUE(bus_.windows().empty());
    EXPECT_EQ(memory_->count_slots(), 1U);
    const auto place = show();
    ASSERT_TRUE(place);
    EXPECT_EQ(place->value(), base);
}

TEST_F(RegionWindowTest, APlaceThatNobodyHasIsNothingToHide) {
    EXPECT_TRUE(window_->hide(GuestAddress{base}));
    EXPECT_TRUE(window_->withdraw(GuestAddress{base}));
}

}  // namespace
}  // namespace guestmem::vmm
