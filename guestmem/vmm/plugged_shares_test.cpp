// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/plugged_shares.hpp"

#include <gtest/gtest.h>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/testing/loop_thread.hpp"
#include "guestmem/vmm/testing/share_world.hpp"

namespace guestmem::vmm {
namespace {

using guestmem::testing::eventually;

constexpr std::uint64_t window_base = std::uint64_t{8} << 30;
constexpr std::uint64_t window_bytes = 16UL << 20;

class PluggedSharesTest : public ::testing::Test {
protected:
    void SetUp() override {
        if (!world_.start()) GTEST_SKIP() << "SKIPPED: " << world_.machine.why;
    }
    [[nodiscard]] PluggedShares::Options options() const {
        return {.control = world_.control(),
                .window = GuestRange::create(GuestAddress{window_base}, window_bytes),
                .kept = {*GuestRange::create(GuestAddress{window_base}, window_bytes)}};
    }
    /// Somebody else in a share, which is made for it.
    [[nodiscard]] share::Session join(const std::string& name, std::uint64_t size_bytes) const {
        share::SessionOptions wanted{.control = world_.control(), .share = name};
        wanted.may_create = true;
        wanted.size_bytes = size_bytes;
        return share::Session::attach(wanted).value();
    }

    testing::ShareWorld world_;
};

TEST_F(PluggedSharesTest, AGuestAddressShowsTheBytesOfTheShare) {
    const share::Session other = join("mailbox", 20'480);
    const Mapping bytes = other.map().value();
    PluggedShares shares{*world_.memory, options()};
    const auto plugged = shares.attach("mailbox", 0x4000'0000);
    ASSERT_TRUE(plugged) << plugged.error().message();
    EXPECT_EQ(plugged->range, *GuestRange::create(GuestAddress{0x4000'0000}, 20'480));
    EXPECT_NE(plugged->slot, other.id());
    auto reader = world_.memory->make_reader("test").value();
    ASSERT_TRUE(reader.memory().store<std::uint8_t>(GuestAddress{0x4000'0000 + 20'479}, 0x5a));
    EXPECT_EQ(bytes.bytes()[20'479], std::byte{0x5a});
    EXPECT_EQ(world_.memory->count_slots(), 2U);
}

TEST_F(PluggedSharesTest, AChosenAddressIsTheHighestFreeOne) {
    const share::Session first = join("first", 4096);
    const share::Session second = join("second", 8192);
    const share::Session third = join("third", 4096);
    PluggedShares::Options busy = options();
    busy.busy = [] {
        return std::vector{*GuestRange::create(GuestAddress{window_base + (12UL << 20)}, 4096)};
    };
    PluggedShares shares{*world_.memory, busy};
    EXPECT_EQ(shares.attach("first", std::nullopt)->range.base().value(), window_base + (14UL << 20));
    EXPECT_EQ(shares.attach("second", std::nullopt)->range.base().value(), window_base + (10UL << 20));
    ASSERT_TRUE(shares.detach("first"));
    EXPECT_EQ(shares.attach("third", std::nullopt)->range.base().value(), window_base + (14UL << 20));
}

TEST_F(PluggedSharesTest, AFullWindowIsAnError) {
    PluggedShares::Options small = options();
    small.window = GuestRange::create(GuestAddress{window_base}, 2UL << 20);
    PluggedShares shares{*world_.memory, small};
    const share::Session first = join("first", 2UL << 20);
    const share::Session second = join("second", 4096);
    const share::Session large = join("large", 4UL << 20);
    EXPECT_EQ(shares.attach("large", std::nullopt).error().code(), Errc::exhausted);
    EXPECT_EQ(shares.attach("first", std::nullopt)->range.base().value(), window_base);
    EXPECT_EQ(shares.attach("second", std::nullopt).error().code(), Errc::exhausted);
}

TEST_F(PluggedSharesTest, AWrongAddressChangesNothing) {
    const share::Session other = join("mailbox", 8192);
    PluggedShares shares{*world_.memory, options()};
    const auto code_at = [&](std::uint64_t address) {
        return shares.attach("mailbox", address).error().code();
    };
    EXPECT_EQ(code_at(0x4000'0001), Errc::invalid_argument);
    EXPECT_EQ(code_at(~std::uint64_t{0} - 4095), Errc::invalid_argument);
    EXPECT_EQ(code_at(window_base + window_bytes - 4096), Errc::invalid_argument);
    EXPECT_EQ(code_at(0xf000), Errc::already_exists);
    EXPECT_EQ(world_.memory->count_slots(), 1U);
    EXPECT_TRUE(shares.list().empty());
    // Nobody of ours stays in the share either.
    EXPECT_TRUE(eventually([&] { return other.peers().empty(); }));
}

TEST_F(PluggedSharesTest, ADetachTakesMemoryAndPlaceAway) {
    const share::Session other = join("mailbox", 4096);
    PluggedShares shares{*world_.memory, options()};
    ASSERT_TRUE(shares.attach("mailbox", 0x4000'0000));
    EXPECT_TRUE(eventually([&] { return other.peers().size() == 1; }));
    EXPECT_EQ(shares.attach("mailbox", std::nullopt).error().code(), Errc::already_exists);
    ASSERT_TRUE(shares.detach("mailbox"));
    EXPECT_EQ(world_.memory->count_slots(), 1U);
    EXPECT_TRUE(eventually([&] { return other.peers().empty(); }));
    EXPECT_EQ(shares.detach("mailbox").error().code(), Errc::not_found);
    EXPECT_TRUE(shares.attach("mailbox", 0x4000'0000));
}

TEST_F(PluggedSharesTest, ADetachThatTheKernelRefusesLeavesTheShare) {
    const share::Session other = join("mailbox", 4096);
    PluggedShares shares{*world_.memory, options()};
    ASSERT_TRUE(shares.attach("mailbox", 0x4000'0000));
    {
        const FaultInjector injector{0, {.only = SysCall::ioctl}};
        EXPECT_FALSE(shares.detach("mailbox"));
    }
    EXPECT_EQ(shares.list().size(), 1U);
    EXPECT_EQ(world_.memory->count_slots(), 2U);
    EXPECT_TRUE(shares.detach("mailbox"));
}

TEST_F(PluggedSharesTest, NamesAndServicesThatAreNoneAreErrors) {
    PluggedShares shares{*world_.memory, options()};
    EXPECT_EQ(shares.attach("../x", std::nullopt).error().code(), Errc::invalid_argument);
    EXPECT_EQ(shares.attach(std::string(32, 'x'), std::nullopt).error().code(), Errc::invalid_argument);
    EXPECT_EQ(shares.attach("mailbox", std::nullopt).error().code(), Errc::not_found);
    PluggedShares alone{*world_.memory, {}};
    EXPECT_EQ(alone.attach("mailbox", std::nullopt).error().code(), Errc::unavailable);
}

TEST_F(PluggedSharesTest, OneMoreThanTheLimitIsRefused) {
    PluggedShares::Options many = options();
    many.window = GuestRange::create(GuestAddress{window_base}, 1UL << 30);
    PluggedShares shares{*world_.memory, many};
    for (std::size_t number = 0; number <= PluggedShares::max_shares; ++number) {
        const std::string name = "share" + std::to_string(number);
        // One that is made by a client lives as long as somebody is in it.
        const share::Session other = join(name, 4096);
        const auto plugged = shares.attach(name, std::nullopt);
        if (number < PluggedShares::max_shares) {
            ASSERT_TRUE(plugged) << number << ": " << plugged.error().message();
        } else {
            EXPECT_EQ(plugged.error().code(), Errc::exhausted);
        }
    }
}

}  // namespace
}  // namespace guestmem::vmm
