// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/pair_bells.hpp"

#include <gmock/gmock.h>

#include <cstdint>
#include <set>
#include <utility>
#include <vector>

namespace guestmem::share {
namespace {

ShareConfig config_of_slots(std::uint32_t slots, std::uint32_t vectors, IdPolicy ids = IdPolicy::stable) {
    return {.name = "m", .size_bytes = 4096, .vectors = vectors, .slots = slots, .ids = ids};
}

TEST(PairBellsOfAShare, AreForFewSlotsAndVectorsWithStableIds) {
    EXPECT_TRUE(can_have_pairs(config_of_slots(16, max_pair_vectors)));
    EXPECT_TRUE(can_have_pairs(config_of_slots(2, 1)));
    EXPECT_FALSE(can_have_pairs(config_of_slots(17, 1)));
    EXPECT_FALSE(can_have_pairs(config_of_slots(16, max_pair_vectors + 1)));
    EXPECT_FALSE(can_have_pairs(config_of_slots(16, 1, IdPolicy::classic)));
}

TEST(PairBellsOfAShare, OnlyAShareOfAllSlotsSetsSomeAside) {
    EXPECT_EQ(first_pair_slot(config_of_slots(16, 1)), 8U);
    EXPECT_EQ(first_pair_slot(config_of_slots(15, 1)), 15U);
    EXPECT_EQ(first_pair_slot(config_of_slots(16, max_pair_vectors + 1)), 16U);
    EXPECT_EQ(most_pair_bells(config_of_slots(16, 2)), 256U);
    EXPECT_EQ(most_pair_bells(config_of_slots(17, 2)), 0U);
}

TEST(PairBells, HaveAllVectorsTowardsEachOfTheirReceivers) {
    const auto pairs = PairBells::create(config_of_slots(16, 2), SenderSet{0x8001}).value();
    EXPECT_EQ(pairs.receivers(), SenderSet{0x8001});
    ASSERT_NE(pairs.find(15), nullptr);
    EXPECT_EQ(pairs.find(15)->vectors.size(), 2U);
    EXPECT_EQ(pairs.find(15)->id, 15U);
    EXPECT_EQ(pairs.find(1), nullptr);
    EXPECT_EQ(pairs.find(16), nullptr);
    EXPECT_TRUE(PairBells{}.is_empty());
}

TEST(PairBells, ComeBackFromDescriptorsAndNotWithoutOneOfThem) {
    const ShareConfig config = config_of_slots(16, 2);
    const auto pairs = PairBells::create(config, SenderSet{0x0102}).value();
    const auto copies = [&] {
        std::vector<Fd> fds;
        for (const std::uint32_t slot : {1U, 8U}) {
            const auto towards = pairs.find(slot);
            for (const EventFd& bell : towards->vectors) fds.push_back(bell.duplicate().value());
        }
        return fds;
    };
    const auto again = PairBells::adopt(config, SenderSet{0x0102}, copies()).value();
    const auto before = pairs.find(8);
    ASSERT_TRUE(before->vectors[1].ring());
    const auto after = again.find(8);
    EXPECT_EQ(after->vectors[1].drain().value(), 1U);
    auto missing = copies();
    missing[2] = Fd{};
    EXPECT_FALSE(PairBells::adopt(config, SenderSet{0x0102}, std::move(missing)));
    EXPECT_FALSE(PairBells::adopt(config, SenderSet{0x0103}, copies()));
}

TEST(PairBells, EveryOneHasAKeyOfItsOwnBesideThoseOfTheSlots) {
    const ShareConfig config = config_of_slots(16, 4);
    std::set<std::uint32_t> indexes;
    for (std::uint32_t bell = 0; bell < 64; ++bell) indexes.insert(bell);
    for (std::uint32_t sender = 0; sender < 16; ++sender)
        for (const KeptKey& key : pair_bell_keys(config, 7, sender, SenderSet{0xffff})) {
            EXPECT_EQ(key.kind, KeptKind::doorbell);
            EXPECT_EQ(key.share, 7U);
            EXPECT_TRUE(indexes.insert(key.index).second) << key.index;
        }
    EXPECT_EQ(indexes.size(), 64U + 16 * 16 * 4);
}

}  // namespace
}  // namespace guestmem::share
