// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/iotlb.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <random>
#include <utility>

namespace guestmem {
namespace {

constexpr std::uint64_t top = std::numeric_limits<std::uint64_t>::max();

IoRange range(std::uint64_t base, std::uint64_t size_bytes) {
    return IoRange::create(IoAddress{base}, size_bytes).value();
}
Translation translation(std::uint64_t base, std::uint64_t size_bytes, std::uint64_t to,
                        Permissions permissions = Permissions::read_write) {
    return Translation::create(range(base, size_bytes), GuestAddress{to}, permissions).value();
}
Iotlb iotlb_of(std::size_t capacity = default_iotlb_capacity) {
    return Iotlb::create({.capacity = capacity}).value();
}
using Entries = std::vector<Translation>;

TEST(Iotlb, HasRoomForOneToMaxEntries) {
    for (const std::size_t good : {std::size_t{1}, default_iotlb_capacity, max_iotlb_capacity})
        EXPECT_EQ(iotlb_of(good).capacity(), good);
    for (const std::size_t bad : {std::size_t{0}, max_iotlb_capacity + 1}) {
        const auto iotlb = Iotlb::create({.capacity = bad});
        ASSERT_FALSE(iotlb) << bad;
        EXPECT_EQ(iotlb.error().code(), Errc::out_of_range);
    }
}

TEST(Iotlb, FindsTheFirstAndTheLastAddressOfAnEntryAndNoneBeside) {
    Iotlb iotlb = iotlb_of();
    const Translation some = translation(0x1000, 0x123, 0x8000);
    iotlb.insert(some);
    EXPECT_EQ(iotlb.lookup(IoAddress{0x1000}), some);
    EXPECT_EQ(iotlb.lookup(IoAddress{0x1122}), some);
    EXPECT_FALSE(iotlb.lookup(IoAddress{0xfff}));
    EXPECT_FALSE(iotlb.lookup(IoAddress{0x1123}));
    EXPECT_FALSE(iotlb.lookup(IoAddress{0}));
    EXPECT_FALSE(iotlb.lookup(IoAddress{top}));
    EXPECT_EQ(iotlb.counts(), (IotlbCounts{.hits = 2, .misses = 4, .evictions = 0}));
}

TEST(Iotlb, WorksAtBothEndsOfTheSpace) {
    Iotlb iotlb = iotlb_of();
    iotlb.insert(translation(0, 1, top));
    iotlb.insert(translation(top, 1, 0));
    EXPECT_EQ(iotlb.lookup(IoAddress{0}), translation(0, 1, top));
    EXPECT_EQ(iotlb.lookup(IoAddress{top}), translation(top, 1, 0));
    iotlb.invalidate(range(top, 1));
    EXPECT_FALSE(iotlb.lookup(IoAddress{top}));
    EXPECT_TRUE(iotlb.lookup(IoAddress{0}));
    iotlb.insert(translation(1, top, 1));
    EXPECT_EQ(iotlb.count(), 2U);
    iotlb.invalidate(range(0, top));
    EXPECT_EQ(iotlb.entries(), (Entries{translation(top, 1, top)}));
}

TEST(Iotlb, TrimsWhatAnInvalidationCoversInPart) {
    const Translation whole = translation(0x1000, 0x100, 0x8000);
    struct Case {
        IoRange gone;
        Entries left;
    };
    const Case cases[] = {
        {range(0x1000, 0x100), {}},
        {range(0xfff, 0x102), {}},
        {range(0x1000, 1), {translation(0x1001, 0xff, 0x8001)}},
        {range(0x0, 0x1080), {translation(0x1080, 0x80, 0x8080)}},
        {range(0x10ff, 1), {translation(0x1000, 0xff, 0x8000)}},
        {range(0x1080, top - 0x1080), {translation(0x1000, 0x80, 0x8000)}},
        {range(0x1040, 0x10), {translation(0x1000, 0x40, 0x8000), translation(0x1050, 0xb0, 0x8050)}},
        {range(0xff0, 0x10), {whole}},
        {range(0x1100, 1), {whole}},
    };
    for (const Case& some : cases) {
        SCOPED_TRACE(some.gone.base().value());
        Iotlb iotlb = iotlb_of();
        iotlb.insert(whole);
        iotlb.invalidate(some.gone);
        EXPECT_EQ(iotlb.entries(), some.left);
    }
}

TEST(Iotlb, AnInsertTakesThePlaceOfWhatWasThere) {
    Iotlb iotlb = iotlb_of();
    iotlb.insert(translation(0x1000, 0x100, 0x8000));
    iotlb.insert(translation(0x1200, 0x100, 0x9000));
    iotlb.insert(translation(0x1080, 0x200, 0x20000));
    EXPECT_EQ(iotlb.entries(),
              (Entries{translation(0x1000, 0x80, 0x8000), translation(0x1080, 0x200, 0x20000),
                       translation(0x1280, 0x80, 0x9080)}));
    // In the middle: the remains stand on both sides.
    iotlb.insert(translation(0x1100, 1, 7));
    EXPECT_EQ(iotlb.lookup(IoAddress{0x10ff}), translation(0x1080, 0x80, 0x20000));
    EXPECT_EQ(iotlb.lookup(IoAddress{0x1100}), translation(0x1100, 1, 7));
    EXPECT_EQ(iotlb.lookup(IoAddress{0x1101}), translation(0x1101, 0x17f, 0x20081));
}

TEST(Iotlb, JoinsNeighborsThatContinueEachOther) {
    Iotlb iotlb = iotlb_of();
    iotlb.insert(translation(0x1000, 0x100, 0x8000));
    iotlb.insert(translation(0x1200, 0x100, 0x8200));
    EXPECT_EQ(iotlb.count(), 2U);
    iotlb.insert(translation(0x1100, 0x100, 0x8100));
    EXPECT_EQ(iotlb.entries(), (Entries{translation(0x1000, 0x300, 0x8000)}));
    iotlb.insert(translation(0x1300, 0x100, 0x8300, Permissions::read));
    iotlb.insert(translation(0xf00, 0x100, 0x7f01));
    EXPECT_EQ(iotlb.count(), 3U);
}

TEST(Iotlb, ATranslationWithoutPermissionsOnlyRemoves) {
    Iotlb iotlb = iotlb_of();
    iotlb.insert(translation(0x1000, 0x100, 0x8000));
    iotlb.insert(translation(0x1040, 0x40, 0x8040, Permissions::none));
    EXPECT_EQ(iotlb.entries(),
              (Entries{translation(0x1000, 0x40, 0x8000), translation(0x1080, 0x80, 0x8080)}));
}

TEST(Iotlb, InvalidateAllForgetsEverything) {
    Iotlb iotlb = iotlb_of();
    iotlb.insert(translation(0, 1, 0));
    iotlb.insert(translation(top, 1, 0));
    iotlb.invalidate_all();
    EXPECT_EQ(iotlb.count(), 0U);
    EXPECT_FALSE(iotlb.lookup(IoAddress{0}));
}

TEST(Iotlb, FullEvictsOneEntryForAnother) {
    constexpr std::size_t capacity = 4;
    Iotlb iotlb = iotlb_of(capacity);
    for (std::uint64_t i = 0; i < capacity; ++i) iotlb.insert(translation(i * 0x1000, 0x100, i));
    EXPECT_EQ(iotlb.count(), capacity);
    EXPECT_EQ(iotlb.counts().evictions, 0U);
    iotlb.insert(translation(0x100000, 0x100, 0));
    EXPECT_EQ(iotlb.count(), capacity);
    EXPECT_EQ(iotlb.counts().evictions, 1U);
    EXPECT_TRUE(iotlb.lookup(IoAddress{0x100000}));
}

TEST(Iotlb, EvictsWhatWasNotLookedUpBeforeWhatWas) {
    Iotlb iotlb = iotlb_of(4);
    for (std::uint64_t i = 0; i < 4; ++i) iotlb.insert(translation(i * 0x1000, 0x100, i));
    for (const std::uint64_t used : {0U, 1U, 3U}) EXPECT_TRUE(iotlb.lookup(IoAddress{used * 0x1000}));
    iotlb.insert(translation(0x10000, 0x100, 0));
    EXPECT_FALSE(iotlb.lookup(IoAddress{0x2000}));
    for (const std::uint64_t used : {0U, 1U, 3U}) EXPECT_TRUE(iotlb.lookup(IoAddress{used * 0x1000}));
}

TEST(Iotlb, EvictsSomethingWhenAllWereLookedUp) {
    Iotlb iotlb = iotlb_of(3);
    for (std::uint64_t i = 0; i < 3; ++i) iotlb.insert(translation(i * 0x1000, 0x100, i));
    for (std::uint64_t turn = 0; turn < 20; ++turn) {
        for (const Translation& entry : iotlb.entries()) EXPECT_TRUE(iotlb.lookup(entry.from().base()));
        iotlb.insert(translation(0x10000 + turn * 0x1000, 0x100, 0));
        EXPECT_EQ(iotlb.count(), 3U);
        EXPECT_TRUE(iotlb.lookup(IoAddress{0x10000 + turn * 0x1000}));
    }
}

TEST(Iotlb, SplittingAnEntryWhenFullKeepsTheBound) {
    for (const std::size_t capacity : {1U, 2U}) {
        Iotlb iotlb = iotlb_of(capacity);
        if (capacity == 2) iotlb.insert(translation(0x9000, 0x100, 0));
        iotlb.insert(translation(0x1000, 0x100, 0x8000));
        iotlb.invalidate(range(0x1040, 0x10));
        EXPECT_EQ(iotlb.count(), capacity);
        EXPECT_EQ(iotlb.counts().evictions, 1U);
        EXPECT_FALSE(iotlb.lookup(IoAddress{0x1040}));
        iotlb.insert(translation(0x2000, 0x100, 0x8000));
        iotlb.insert(translation(0x2040, 1, 7));
        EXPECT_EQ(iotlb.count(), capacity);
        EXPECT_EQ(iotlb.lookup(IoAddress{0x2040}), translation(0x2040, 1, 7));
    }
}

// ---- against a naive model ----

/// What each address leads to.
using Model = std::map<std::uint64_t, std::pair<std::uint64_t, Permissions>>;

class Player {
public:
    struct Options {
        std::uint64_t seed = 0;
        std::uint64_t origin = 0;
        std::size_t capacity = max_iotlb_capacity;
        bool may_forget = false;
    };
    explicit Player(const Options& options)
        : random_(options.seed),
          origin_(options.origin),
          may_forget_(options.may_forget),
          iotlb_(iotlb_of(options.capacity)) {}

    void play(int count_steps) {
        for (int step = 0; step < count_steps && !testing::Test::HasFailure(); ++step) {
            SCOPED_TRACE(step);
            play_one();
            check_shape();
            for (int i = 0; i < 8; ++i) check(origin_ + random_() % span_bytes);
            if (step % 64 == 0)
                for (std::uint64_t i = 0; i < span_bytes; ++i) check(origin_ + i);
        }
    }

private:
    static constexpr std::uint64_t span_bytes = 512;

    void play_one() {
        // Within the span, so at the end of the space up to 2^64 - 1.
        const std::uint64_t offset = random_() % span_bytes;
        const std::uint64_t size_bytes = 1 + random_() % (random_() % 4 == 0 ? span_bytes - offset : 16);
        const std::uint64_t count = std::min(size_bytes, span_bytes - offset);
        const std::uint64_t base = origin_ + offset;
        const std::uint64_t kind = random_() % 100;
        if (kind < 60) {
            // Few distances between the two sides, so that neighbors often continue each other.
            const std::uint64_t to = 0x10000 + offset + random_() % 2 * 0x1000;
            const auto permissions = static_cast<Permissions>(random_() % 8 == 0 ? 0 : 1 + random_() % 3);
            iotlb_.insert(translation(base, count, to, permissions));
            for (std::uint64_t i = 0; i < count; ++i) model_[base + i] = {to + i, permissions};
            if (permissions == Permissions::none) forget(base, count);
        } else if (kind < 99) {
            iotlb_.invalidate(range(base, count));
            forget(base, count);
        } else {
            iotlb_.invalidate_all();
            model_.clear();
        }
    }
    void forget(std::uint64_t base, std::uint64_t count) {
        for (std::uint64_t i = 0; i < count; ++i) model_.erase(base + i);
    }

    void check(std::uint64_t address) {
        const auto found = iotlb_.lookup(IoAddress{address});
        const auto known = model_.find(address);
        if (!found) {
            EXPECT_TRUE(may_forget_ || known == model_.end()) << address << " is missing";
            return;
        }
        ASSERT_NE(known, model_.end()) << address << " was never there";
        EXPECT_EQ(found->guest_address_of(IoAddress{address}), GuestAddress{known->second.first});
        EXPECT_EQ(found->permissions(), known->second.second);
    }

    void check_shape() {
        const Entries entries = iotlb_.entries();
        ASSERT_LE(entries.size(), iotlb_.capacity());
        for (std::size_t i = 1; i < entries.size(); ++i) {
            EXPECT_LT(entries[i - 1].from().last(), entries[i].from().base());
            EXPECT_FALSE(entries[i - 1].joined_with(entries[i])) << "two entries that could be one";
        }
        EXPECT_TRUE(may_forget_ || iotlb_.counts().evictions == 0);
    }

    std::mt19937_64 random_;
    std::uint64_t origin_;
    bool may_forget_;
    Iotlb iotlb_;
    Model model_;
};

TEST(IotlbModel, LargeKnowsExactlyWhatAMapOfAllAddressesKnows) {
    const std::uint64_t seed = std::random_device{}();
    SCOPED_TRACE(seed);
    for (const std::uint64_t origin : {std::uint64_t{0}, std::uint64_t{0x7fff'ffff'ffff'ff00}, top - 511}) {
        SCOPED_TRACE(origin);
        Player player{{.seed = seed ^ origin, .origin = origin}};
        player.play(3000);
    }
}

TEST(IotlbModel, SmallMayForgetButNeverLies) {
    const std::uint64_t seed = std::random_device{}();
    SCOPED_TRACE(seed);
    for (const std::size_t capacity : {1U, 2U, 3U, 7U}) {
        SCOPED_TRACE(capacity);
        Player player{
            {.seed = seed + capacity, .origin = top - 511, .capacity = capacity, .may_forget = true}};
        player.play(2000);
    }
}

}  // namespace
}  // namespace guestmem
