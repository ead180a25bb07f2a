// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/dirty_harvest.hpp"

#include <gtest/gtest.h>

#include "guestmem/vmm/testing/real_mode_machine.hpp"

namespace guestmem::vmm {
namespace {

/// Pages of the machine's 64 KiB, written by a device.
class DirtyHarvestTest : public ::testing::Test {
protected:
    void SetUp() override {
        if (!machine_.start()) GTEST_SKIP() << "SKIPPED: " << machine_.why;
        memory_ = VmMemory::create(*machine_.system, machine_.machine, machine_.map).value();
        ASSERT_TRUE(memory_->start_dirty_log());
    }
    void write_pages(std::initializer_list<std::uint64_t> pages) const {
        auto reader = memory_->make_reader("test").value();
        for (const std::uint64_t page : pages)
            ASSERT_TRUE(reader.memory().store<std::uint8_t>(GuestAddress{page * 4096 + 7}, 1));
    }
    static std::vector<std::uint64_t> pages_of(const DirtyHarvest::Part& part) {
        std::vector<std::uint64_t> pages;
        for (const GuestRange& range : part.ranges) {
            for (std::uint64_t at = 0; at < range.size_bytes(); at += 4096)
                pages.push_back((range.base().value() + at) / 4096);
        }
        return pages;
    }
    using Pages = std::vector<std::uint64_t>;

    testing::RealModeMachine machine_;
    std::unique_ptr<VmMemory> memory_;
};

TEST_F(DirtyHarvestTest, PagesSideBySideAreOneRange) {
    DirtyHarvest harvest{*memory_};
    write_pages({2, 3, 4, 9, 15});
    const auto part = harvest.next({}).value();
    ASSERT_EQ(part.ranges.size(), 3U);
    EXPECT_EQ(part.ranges[0], *GuestRange::create(GuestAddress{0x2000}, 3 * 4096));
    EXPECT_EQ(pages_of(part), (Pages{2, 3, 4, 9, 15}));
    EXPECT_FALSE(part.has_more);
}

TEST_F(DirtyHarvestTest, PartsGoOnWhereTheLastOneEnded) {
    DirtyHarvest harvest{*memory_};
    write_pages({1, 3, 5, 7, 9});
    auto part = harvest.next({.limit = 2}).value();
    EXPECT_EQ(pages_of(part), (Pages{1, 3}));
    EXPECT_TRUE(part.has_more);
    part = harvest.next({.limit = 2, .confirm = part.ticket}).value();
    EXPECT_EQ(pages_of(part), (Pages{5, 7}));
    EXPECT_TRUE(part.has_more);
    part = harvest.next({.limit = 2, .confirm = part.ticket}).value();
    EXPECT_EQ(pages_of(part), (Pages{9}));
    EXPECT_FALSE(part.has_more);
    part = harvest.next({.confirm = part.ticket}).value();
    EXPECT_TRUE(part.ranges.empty());
    EXPECT_TRUE(harvest.next({.confirm = part.ticket}).value().ranges.empty());
}

TEST_F(DirtyHarvestTest, WhatWasNotConfirmedIsToldAgain) {
    DirtyHarvest harvest{*memory_};
    write_pages({1, 3});
    EXPECT_EQ(pages_of(harvest.next({}).value()), (Pages{1, 3}));
    write_pages({2});
    EXPECT_EQ(pages_of(harvest.next({}).value()), (Pages{1, 2, 3}));
}

TEST_F(DirtyHarvestTest, APageThatIsWrittenAgainAfterItWasToldIsNotConfirmedAway) {
    DirtyHarvest harvest{*memory_};
    write_pages({1, 3});
    const auto part = harvest.next({}).value();
    write_pages({3});
    EXPECT_EQ(pages_of(harvest.next({.confirm = part.ticket}).value()), (Pages{3}));
}

TEST_F(DirtyHarvestTest, OnlyTheLastTicketCountsAndOnlyOnce) {
    DirtyHarvest harvest{*memory_};
    write_pages({1});
    const auto first = harvest.next({}).value();
    const auto second = harvest.next({}).value();
    EXPECT_EQ(harvest.next({.confirm = first.ticket}).error().code(), Errc::invalid_argument);
    EXPECT_TRUE(harvest.next({.confirm = second.ticket}));
    EXPECT_EQ(harvest.next({.confirm = second.ticket}).error().code(), Errc::invalid_argument);
    EXPECT_EQ(harvest.next({.confirm = 0}).error().code(), Errc::invalid_argument);
}

TEST_F(DirtyHarvestTest, TheLimitsOfAPartAreKept) {
    DirtyHarvest harvest{*memory_};
    EXPECT_EQ(harvest.next({.limit = 0}).error().code(), Errc::out_of_range);
    EXPECT_TRUE(harvest.next({.limit = DirtyHarvest::max_ranges}));
    EXPECT_EQ(harvest.next({.limit = DirtyHarvest::max_ranges + 1}).error().code(), Errc::out_of_range);
}

TEST_F(DirtyHarvestTest, PagesOfAnUnpluggedRegionAreToldNoMore) {
    DirtyHarvest harvest{*memory_};
    const auto plug = [&] {
        const auto region =
            Region::create({.name = "plugged",
                            .base = GuestAddress{0x20000},
                            .memory = HostMemory::create_anonymous({.size_bytes = 8192}).value()})
                .value();
        EXPECT_TRUE(memory_->insert(region));
        return region;
    };
    const auto region = plug();
    write_pages({1, 0x21});
    EXPECT_EQ(pages_of(harvest.next({}).value()), (Pages{1, 0x21}));
    ASSERT_TRUE(memory_->remove(region->range()));
    EXPECT_EQ(pages_of(harvest.next({}).value()), (Pages{1}));
    // Another one at the same addresses has its own pages.
    plug();
    write_pages({0x20});
    EXPECT_EQ(pages_of(harvest.next({}).value()), (Pages{1, 0x20}));
}

TEST_F(DirtyHarvestTest, ALogThatIsOffIsAnError) {
    DirtyHarvest harvest{*memory_};
    write_pages({1});
    ASSERT_TRUE(harvest.next({}));
    ASSERT_TRUE(memory_->stop_dirty_log());
    harvest.forget();
    EXPECT_EQ(harvest.next({}).error().code(), Errc::not_found);
    ASSERT_TRUE(memory_->start_dirty_log());
    EXPECT_TRUE(harvest.next({}).value().ranges.empty());
}

}  // namespace
}  // namespace guestmem::vmm
