// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/roster.hpp"

#include <gtest/gtest.h>

#include <cerrno>
#include <map>
#include <random>
#include <ranges>

namespace guestmem::share {
namespace {

ShareConfig share_of(std::uint32_t slots, IdPolicy ids = IdPolicy::stable) {
    return {.name = "s", .size_bytes = 4096, .vectors = 1, .slots = slots, .ids = ids, .huge_page_bytes = 0};
}

TEST(Roster, GivesTheLowestAndTheHighestSlotThatNoVmOwns) {
    const std::vector<std::uint32_t> owned{0, 3};
    Roster roster{share_of(5), owned};
    EXPECT_EQ(roster.take(Wish::lowest).value(), 1U);
    EXPECT_EQ(roster.take(Wish::highest).value(), 4U);
    EXPECT_EQ(roster.take(Wish::highest).value(), 2U);
    const auto refused = roster.take(Wish::lowest);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().os_error(), ENOSPC);
    EXPECT_EQ(roster.count_held(), 3U);
}

TEST(Roster, GivesAVmItsOwnSlotsInTheirOrderAndNoOther) {
    const std::vector<std::uint32_t> owned{2, 0};
    Roster roster{share_of(4), owned};
    EXPECT_EQ(roster.take(Wish::own, owned).value(), 2U);
    EXPECT_EQ(roster.take(Wish::own, owned).value(), 0U);
    const auto refused = roster.take(Wish::own, owned);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().os_error(), EBUSY);
}

TEST(Roster, AReleasedSlotGoesBackToItsKind) {
    const std::vector<std::uint32_t> owned{0};
    Roster roster{share_of(2), owned};
    const std::uint32_t own = roster.take(Wish::own, owned).value();
    const std::uint32_t open = roster.take(Wish::lowest).value();
    roster.release(own);
    roster.release(open);
    EXPECT_EQ(roster.take(Wish::highest).value(), 1U);
    EXPECT_FALSE(roster.take(Wish::highest)) << "slot 0 is its VM's";
    EXPECT_EQ(roster.take(Wish::own, owned).value(), 0U);
}

TEST(Roster, AFixedSocketTakesASlotThatNobodyOwns) {
    Roster roster{share_of(3), {}};
    const std::vector<std::uint32_t> second{1};
    EXPECT_EQ(roster.take(Wish::own, second).value(), 1U);
    EXPECT_EQ(roster.take(Wish::lowest).value(), 0U);
    EXPECT_EQ(roster.take(Wish::lowest).value(), 2U);
}

TEST(Roster, ReleasingWhatNobodyHoldsChangesNothing) {
    Roster roster{share_of(1), {}};
    roster.release(0);
    roster.release(7);
    EXPECT_EQ(roster.take(Wish::lowest).value(), 0U);
    EXPECT_FALSE(roster.take(Wish::lowest));
}

TEST(Roster, ClassicIdsAreNeverReused) {
    Roster roster{share_of(2, IdPolicy::classic), {}};
    EXPECT_EQ(roster.take(Wish::lowest).value(), 0U);
    EXPECT_EQ(roster.take(Wish::highest).value(), 1U);
    EXPECT_EQ(roster.take(Wish::lowest).error().os_error(), ENOSPC);
    roster.release(0);
    EXPECT_EQ(roster.take(Wish::own).value(), 2U);
}

TEST(Roster, ClassicIdsEndAtTheLastOne) {
    Roster roster{share_of(1, IdPolicy::classic), {}};
    for (std::uint32_t id = 0; id <= 65'535; ++id) {
        ASSERT_EQ(roster.take(Wish::lowest).value(), id);
        roster.release(id);
    }
    const auto refused = roster.take(Wish::lowest);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().os_error(), EUSERS);
}

/// Ten lines that know nothing of sets: who holds which slot.
struct Model {
    std::vector<bool> held;
    std::vector<bool> owned;

    std::int64_t take(Wish wish, const std::vector<std::uint32_t>& own) {
        std::int64_t found = -1;
        if (wish == Wish::own) {
            for (const std::uint32_t slot : std::views::reverse(own))
                if (!held[slot]) found = slot;
        } else {
            for (std::size_t i = 0; i < held.size(); ++i)
                if (!held[i] && !owned[i] && (found < 0 || wish == Wish::highest))
                    found = static_cast<std::int64_t>(i);
        }
        if (found >= 0) held[static_cast<std::size_t>(found)] = true;
        return found;
    }
};

TEST(Roster, AgreesWithANaiveModelOverRandomOperations) {
    const std::uint64_t seed = std::random_device{}();
    RecordProperty("seed", std::to_string(seed));
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random{seed};
    for (int round = 0; round < 50; ++round) {
        const auto slots = static_cast<std::uint32_t>(1 + random() % 12);
        Model model{std::vector<bool>(slots), std::vector<bool>(slots)};
        std::vector<std::uint32_t> owned;
        for (std::uint32_t slot = 0; slot < slots; ++slot) {
            if (random() % 3 != 0) continue;
            owned.push_back(slot);
            model.owned[slot] = true;
        }
        Roster roster{share_of(slots), owned};
        for (int step = 0; step < 200; ++step) {
            if (random() % 3 == 0) {
                const auto slot = static_cast<std::uint32_t>(random() % slots);
                roster.release(slot);
                model.held[slot] = false;
                continue;
            }
            const auto wish = static_cast<Wish>(random() % 3);
            const auto real = roster.take(wish, owned);
            const std::int64_t expected = model.take(wish, owned);
            ASSERT_EQ(real ? std::int64_t{*real} : -1, expected) << "round " << round << " step " << step;
        }
    }
}

}  // namespace
}  // namespace guestmem::share
