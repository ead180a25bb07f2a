// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/fork_bill.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <string>
#include <vector>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/template/lease.hpp"
#include "guestmem/mem/template/template.hpp"
#include "guestmem/mem/template/testing/chain.hpp"

namespace guestmem {
namespace {

using testing::Chain;
using ::testing::SizeIs;

const std::string one_id(32, '1');
const std::string other_id(32, '2');

TEST(ForkBill, OfATemplateWithoutForksIsEmpty) {
    Chain chain;
    EXPECT_THAT(fork_bills(*chain.open(0)).value(), SizeIs(0));
}

TEST(ForkBill, CountsTheForksOfAProcessAndWhatTheyWrote) {
    Chain chain;
    chain.add(1);
    for (const int number : {0, 1}) {
        const auto base = chain.open(number);
        const Fork first = base->fork().value();
        const Fork second = base->fork().value();
        testing::bytes_of(*second.regions[0])[5] = std::byte{0xee};
        const std::vector<ForkBill> bills = fork_bills(*base).value();
        ASSERT_THAT(bills, SizeIs(1)) << number;
        EXPECT_EQ(bills[0].pid, ::getpid());
        EXPECT_EQ(bills[0].count_forks, 2U);
        EXPECT_EQ(bills[0].usage->mapped_bytes, 2 * Chain::image_bytes);
        EXPECT_EQ(bills[0].usage->anonymous_bytes, page_size_bytes);
        EXPECT_GT(bills[0].faults.minor, 0U);
        EXPECT_EQ(bills[0].generation, "");
    }
}

TEST(ForkBill, TellsWhatAVmmNoted) {
    Chain chain;
    const auto base = chain.open(0);
    const Fork fork = base->fork().value();
    ASSERT_TRUE(base->note_fork({fork.generation, ::getpid(), 1'234'567}));
    const std::vector<ForkBill> bills = fork_bills(*base).value();
    ASSERT_THAT(bills, SizeIs(1));
    EXPECT_EQ(bills[0].generation, fork.generation);
    EXPECT_EQ(bills[0].first_instruction_ns, 1'234'567U);
}

TEST(ForkBill, HasALineForEachChildThatLives) {
    Chain chain;
    const auto base = chain.open(0);
    const Fork fork = base->fork().value();
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0)
        for (;;) ::pause();
    ASSERT_TRUE(base->note_fork({one_id, child, 7}));
    const std::vector<ForkBill> bills = fork_bills(*base).value();
    ASSERT_THAT(bills, SizeIs(2)) << "the starter has a fork of its own";
    EXPECT_EQ(bills[0].pid, child);
    EXPECT_EQ(bills[0].usage->mapped_bytes, Chain::image_bytes);
    EXPECT_EQ(bills[1].pid, ::getpid());
    ::kill(child, SIGKILL);
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
    EXPECT_THAT(fork_bills(*base).value(), SizeIs(1));
}

TEST(ForkBill, ForksThatAreCopiesHaveALineAndNoMapping) {
    Chain chain;
    const auto base = chain.open(0);
    const auto leases = base->hold().value();
    const Fork fork = base->fork({.mode = RestoreMode::copy}).value();
    const std::vector<ForkBill> bills = fork_bills(*base).value();
    ASSERT_THAT(bills, SizeIs(1));
    EXPECT_EQ(bills[0].usage->mapped_bytes, 0U);
    EXPECT_EQ(bills[0].count_forks, 0U);
}

TEST(ForkNotes, AreThoseThatWereWrittenAndNoOthers) {
    Chain chain;
    const auto base = chain.open(0);
    EXPECT_FALSE(base->note_fork({"no id", 1, 1}));
    ASSERT_TRUE(base->note_fork({one_id, 11, 12}));
    ASSERT_TRUE(base->note_fork({other_id, 21, 0}));
    const std::vector<Tenant> tenants = tenants_of(chain.path_of(0)).value();
    ASSERT_THAT(tenants, SizeIs(1));
    EXPECT_THAT(tenants[0].forks,
                ::testing::ElementsAre(ForkNote{one_id, 11, 12}, ForkNote{other_id, 21, 0}));
}

TEST(ForkNotes, EndAtALimit) {
    Chain chain;
    const auto base = chain.open(0);
    std::size_t count = 0;
    while (base->note_fork({one_id, 1, 1}) && count < max_lease_bytes) ++count;
    EXPECT_GT(count, 10'000U);
    EXPECT_LT(count, max_lease_bytes / 32);
    EXPECT_THAT(tenants_of(chain.path_of(0)).value().at(0).forks, SizeIs(count)) << "all can be read";
}

}  // namespace
}  // namespace guestmem
