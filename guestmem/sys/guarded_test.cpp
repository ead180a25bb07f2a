// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/guarded.hpp"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>

#include "guestmem/sys/fault_guard.hpp"
#include "guestmem/sys/testing/guest_pages.hpp"
#include "guestmem/sys/testing/two_units.hpp"

namespace guestmem {
namespace {

using testing::change_in_two_units;
using testing::GuestPages;
using testing::load_in_two_units;
using testing::PageAccess;

static_assert(GuardedInteger<std::uint8_t> && GuardedInteger<std::uint64_t> && GuardedInteger<unsigned long>);
static_assert(!GuardedInteger<bool> && !GuardedInteger<int> && !GuardedInteger<std::byte> &&
              !GuardedInteger<float>);

constexpr std::array orders{std::memory_order_relaxed, std::memory_order_acquire, std::memory_order_release,
                            std::memory_order_acq_rel, std::memory_order_seq_cst};

template <typename T>
class Guarded : public ::testing::Test {
public:
    /// A value in which each byte is another one.
    static constexpr T value_of(unsigned seed) {
        std::uint64_t value = 0;
        for (unsigned i = 0; i < 8; ++i) value = value << 8 | ((seed + 31 * i) & 0xff);
        return static_cast<T>(value);
    }
    [[nodiscard]] T now() const {
        T value{};
        std::memcpy(&value, guest_.data() + 64, sizeof value);
        return value;
    }
    [[nodiscard]] std::byte* place() const { return guest_.data() + 64; }
    [[nodiscard]] std::byte* gone() const { return guest_.page(1) + 64; }
    [[nodiscard]] std::byte* read_only() const { return guest_.page(2) + 64; }

protected:
    void SetUp() override {
        guest_.protect(1, PageAccess::none);
        guest_.protect(2, PageAccess::read_only);
    }
    GuestPages guest_{3};
};
using Integers = ::testing::Types<std::uint8_t, std::uint16_t, std::uint32_t, std::uint64_t>;
TYPED_TEST_SUITE(Guarded, Integers);

TYPED_TEST(Guarded, LoadsWhatWasStoredInAnyOrder) {
    for (const std::memory_order order :
         {std::memory_order_relaxed, std::memory_order_acquire, std::memory_order_seq_cst}) {
        const TypeParam stored = this->value_of(static_cast<unsigned>(order) + 200);
        std::memcpy(this->place(), &stored, sizeof stored);
        TypeParam value{};
        EXPECT_TRUE(try_load(this->place(), value, order));
        EXPECT_EQ(value, stored);
    }
}

TYPED_TEST(Guarded, StoresItsBytesAndNoOthersInAnyOrder) {
    for (const std::memory_order order :
         {std::memory_order_relaxed, std::memory_order_release, std::memory_order_seq_cst}) {
        std::memset(this->place() - 8, 0x55, 24);
        const TypeParam wanted = this->value_of(static_cast<unsigned>(order) + 100);
        EXPECT_TRUE(try_store(this->place(), wanted, order));
        EXPECT_EQ(this->now(), wanted);
        EXPECT_EQ(this->place()[-1], std::byte{0x55});
        EXPECT_EQ(this->place()[sizeof wanted], std::byte{0x55});
    }
}

TYPED_TEST(Guarded, RelaxedAccessesTakeAnyAddress) {
    for (std::size_t offset = 0; offset < 16; ++offset) {
        std::byte* const at = this->place() + offset;
        const TypeParam wanted = this->value_of(static_cast<unsigned>(offset));
        EXPECT_TRUE(try_store(at, wanted));
        TypeParam seen{};
        std::memcpy(&seen, at, sizeof seen);
        EXPECT_EQ(seen, wanted) << offset;
        TypeParam value{};
        EXPECT_TRUE(try_load(at, value));
        EXPECT_EQ(value, wanted) << offset;
    }
}

TYPED_TEST(Guarded, ExchangesInAnyOrder) {
    for (const std::memory_order order : orders) {
        const TypeParam first = this->value_of(1);
        const TypeParam second = this->value_of(130);
        std::memcpy(this->place(), &first, sizeof first);
        TypeParam previous{};
        EXPECT_TRUE(try_exchange(this->place(), second, previous, order));
        EXPECT_EQ(previous, first);
        EXPECT_EQ(this->now(), second);
    }
}

TYPED_TEST(Guarded, ComparesAndExchangesOnlyWhatIsEqual) {
    for (const std::memory_order order : orders) {
        const TypeParam there = this->value_of(129);
        const TypeParam wanted = this->value_of(7);
        std::memcpy(this->place(), &there, sizeof there);

        TypeParam expected = there;
        bool is_exchanged = false;
        EXPECT_TRUE(try_compare_exchange(this->place(), expected, wanted, is_exchanged, order));
        EXPECT_TRUE(is_exchanged);
        EXPECT_EQ(expected, there);
        EXPECT_EQ(this->now(), wanted);

        expected = there;
        EXPECT_TRUE(try_compare_exchange(this->place(), expected, TypeParam{1}, is_exchanged, order));
        EXPECT_FALSE(is_exchanged);
        EXPECT_EQ(expected, wanted);
        EXPECT_EQ(this->now(), wanted);
    }
}

TYPED_TEST(Guarded, AddsOrsAndAndsAndTellsWhatWasThere) {
    for (const std::memory_order order : orders) {
        const TypeParam there = this->value_of(250);
        const TypeParam operand = this->value_of(77);
        TypeParam previous{};

        std::memcpy(this->place(), &there, sizeof there);
        EXPECT_TRUE(try_fetch_add(this->place(), operand, previous, order));
        EXPECT_EQ(previous, there);
        EXPECT_EQ(this->now(), static_cast<TypeParam>(there + operand));

        std::memcpy(this->place(), &there, sizeof there);
        EXPECT_TRUE(try_fetch_or(this->place(), operand, previous, order));
        EXPECT_EQ(previous, there);
        EXPECT_EQ(this->now(), static_cast<TypeParam>(there | operand));

        std::memcpy(this->place(), &there, sizeof there);
        EXPECT_TRUE(try_fetch_and(this->place(), operand, previous, order));
        EXPECT_EQ(previous, there);
        EXPECT_EQ(this->now(), static_cast<TypeParam>(there & operand));
    }
}

TYPED_TEST(Guarded, AChangeTouchesNoNeighbor) {
    std::memset(this->place() - 8, 0x55, 24);
    TypeParam previous{};
    TypeParam expected{};
    bool is_exchanged = false;
    const auto ones = static_cast<TypeParam>(~TypeParam{0});
    EXPECT_TRUE(try_fetch_add(this->place(), ones, previous));
    EXPECT_TRUE(try_fetch_or(this->place(), ones, previous));
    EXPECT_TRUE(try_fetch_and(this->place(), TypeParam{0}, previous));
    EXPECT_TRUE(try_compare_exchange(this->place(), expected, ones, is_exchanged));
    EXPECT_TRUE(is_exchanged);
    EXPECT_TRUE(try_exchange(this->place(), TypeParam{1}, previous));
    EXPECT_EQ(this->place()[-1], std::byte{0x55});
    EXPECT_EQ(this->place()[sizeof(TypeParam)], std::byte{0x55});
}

TYPED_TEST(Guarded, EveryAccessToAPageThatIsGoneIsFalseAndChangesNothing) {
    for (const std::memory_order order : orders) {
        const std::uint64_t before = count_caught_faults();
        TypeParam value = 1;
        TypeParam previous = 2;
        TypeParam expected = 3;
        bool is_exchanged = true;
        if (order != std::memory_order_release && order != std::memory_order_acq_rel)
            EXPECT_FALSE(try_load(this->gone(), value, order));
        else
            EXPECT_FALSE(try_load(this->gone(), value));
        EXPECT_FALSE(try_store(this->gone(), value,
                               order == std::memory_order_seq_cst ? order : std::memory_order_release));
        EXPECT_FALSE(try_exchange(this->gone(), value, previous, order));
        EXPECT_FALSE(try_compare_exchange(this->gone(), expected, value, is_exchanged, order));
        EXPECT_FALSE(try_fetch_add(this->gone(), value, previous, order));
        EXPECT_FALSE(try_fetch_or(this->gone(), value, previous, order));
        EXPECT_FALSE(try_fetch_and(this->gone(), value, previous, order));
        EXPECT_EQ(value, TypeParam{1});
        EXPECT_EQ(previous, TypeParam{2});
        EXPECT_EQ(expected, TypeParam{3});
        EXPECT_TRUE(is_exchanged);
        EXPECT_EQ(count_caught_faults() - before, 7U);
    }
}

TYPED_TEST(Guarded, AReadOnlyPageIsReadAndNotChanged) {
    TypeParam value = 9;
    TypeParam expected = 0;
    TypeParam previous = 5;
    bool is_exchanged = false;
    EXPECT_TRUE(try_load(this->read_only(), value));
    EXPECT_EQ(value, TypeParam{0});
    EXPECT_FALSE(try_store(this->read_only(), TypeParam{1}));
    EXPECT_FALSE(try_store(this->read_only(), TypeParam{1}, std::memory_order_seq_cst));
    EXPECT_FALSE(try_exchange(this->read_only(), TypeParam{1}, previous));
    EXPECT_FALSE(try_compare_exchange(this->read_only(), expected, TypeParam{1}, is_exchanged));
    EXPECT_FALSE(try_fetch_add(this->read_only(), TypeParam{1}, previous));
    EXPECT_FALSE(try_fetch_or(this->read_only(), TypeParam{1}, previous));
    EXPECT_FALSE(try_fetch_and(this->read_only(), TypeParam{1}, previous));
    EXPECT_EQ(previous, TypeParam{5});
    EXPECT_TRUE(try_load(this->read_only(), value));
    EXPECT_EQ(value, TypeParam{0});
}

TYPED_TEST(Guarded, AnAccessThatReachesIntoAPageThatIsGoneIsFalse) {
    if (sizeof(TypeParam) == 1) return;
    TypeParam value{};
    EXPECT_FALSE(try_load(this->guest_.page(1) - 1, value));
    EXPECT_FALSE(try_store(this->guest_.page(1) - 1, value));
    EXPECT_TRUE(try_load(this->guest_.page(1) - sizeof(TypeParam), value));
}

/// Runs `turn` in two threads until they have met often, or for long enough. `turn` says whether the other thread was
/// there since its last turn; it is told which of the two it is. The number of turns.
template <typename Turn>
std::uint64_t in_two_threads(Turn turn) {
    constexpr unsigned often = 10'000;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds{300};
    std::atomic<unsigned> count_met{0};
    std::atomic<std::uint64_t> count_turns{0};
    const auto run = [&](unsigned which) {
        GM_CHECK(prepare_thread_for_guest_memory());
        while (count_met.load() < often && std::chrono::steady_clock::now() < deadline) {
            constexpr unsigned turns = 1'000;
            unsigned met = 0;
            for (unsigned i = 0; i < turns; ++i) met += turn(which) ? 1U : 0U;
            count_met += met;
            count_turns += turns;
        }
    };
    std::thread other{run, 1};
    run(0);
    other.join();
    return count_turns;
}

TYPED_TEST(Guarded, TwoThreadsThatAddLoseNothing) {
    std::array<TypeParam, 2> last{};
    const std::uint64_t count_turns = in_two_threads([&](unsigned which) {
        TypeParam previous{};
        GM_CHECK(try_fetch_add(this->place(), TypeParam{1}, previous));
        const bool has_met = previous != static_cast<TypeParam>(last.at(which) + 1);
        last.at(which) = previous;
        return has_met;
    });
    EXPECT_EQ(this->now(), static_cast<TypeParam>(count_turns));
}

TYPED_TEST(Guarded, TwoThreadsThatCompareAndExchangeLoseNothing) {
    const std::uint64_t count_turns = in_two_threads([&](unsigned) {
        TypeParam expected{};
        GM_CHECK(try_load(this->place(), expected));
        bool has_met = false;
        for (bool is_exchanged = false; !is_exchanged;) {
            const auto wanted = static_cast<TypeParam>(expected + 1);
            GM_CHECK(try_compare_exchange(this->place(), expected, wanted, is_exchanged));
            has_met = has_met || !is_exchanged;
        }
        return has_met;
    });
    EXPECT_EQ(this->now(), static_cast<TypeParam>(count_turns));
}

TYPED_TEST(Guarded, TwoThreadsThatSetAndClearBitsLoseNothing) {
    // Each owns one bit: what it set it finds set, whatever the other does.
    const std::array bits{TypeParam{1}, static_cast<TypeParam>(TypeParam{1} << (8 * sizeof(TypeParam) - 1))};
    std::atomic<std::uint64_t> count_lost{0};
    in_two_threads([&](unsigned which) {
        const TypeParam mine = bits.at(which);
        TypeParam first{};
        TypeParam second{};
        GM_CHECK(try_fetch_or(this->place(), mine, first));
        GM_CHECK(try_fetch_and(this->place(), static_cast<TypeParam>(~mine), second));
        if ((first & mine) != 0 || (second & mine) == 0) ++count_lost;
        return static_cast<TypeParam>(first | mine) != second;
    });
    EXPECT_EQ(count_lost, 0U);
    EXPECT_EQ(this->now(), TypeParam{0});
}

TYPED_TEST(Guarded, WhatTwoThreadsExchangeIsNeitherLostNorDoubled) {
    // Two tokens of the threads and one in memory: after any number of exchanges there are the same three.
    std::array<TypeParam, 2> held{TypeParam{11}, TypeParam{12}};
    ASSERT_TRUE(try_store(this->place(), TypeParam{13}));
    in_two_threads([&](unsigned which) {
        TypeParam previous{};
        GM_CHECK(try_exchange(this->place(), held.at(which), previous));
        const bool has_met = previous != held.at(which);
        held.at(which) = previous;
        return has_met;
    });
    EXPECT_EQ(held[0] + held[1] + this->now(), 36);
    EXPECT_EQ(static_cast<TypeParam>(held[0] * held[1] * this->now()), static_cast<TypeParam>(11 * 12 * 13));
}

TEST(GuardedOrder, WhatAReleaseStoreFollowsAnAcquireLoadSees) {
    const GuestPages guest{1};
    constexpr std::uint32_t turns = 2'000;
    std::uint32_t message = 0;  // plain: ThreadSanitizer has to know the order, too
    std::thread writer{[&] {
        for (std::uint32_t i = 1; i <= turns; ++i) {
            std::uint32_t taken = 0;
            while (taken != i - 1) {
                ASSERT_TRUE(try_load(guest.data() + 64, taken, std::memory_order_acquire));
                if (taken != i - 1) std::this_thread::yield();
            }
            message = i;
            ASSERT_TRUE(try_store(guest.data(), i, std::memory_order_release));
        }
    }};
    for (std::uint32_t i = 1; i <= turns; ++i) {
        std::uint32_t sent = 0;
        while (sent != i) {
            ASSERT_TRUE(try_load(guest.data(), sent, std::memory_order_acquire));
            if (sent != i) std::this_thread::yield();
        }
        ASSERT_EQ(message, i);
        ASSERT_TRUE(try_store(guest.data() + 64, i, std::memory_order_seq_cst));
    }
    writer.join();
}

TEST(GuardedTwice, AFunctionThatTwoUnitsHaveFaultsIntoAFalse) {
    const GuestPages guest{1};
    guest.protect(0, PageAccess::none);
    std::uint64_t value = 0;
    EXPECT_FALSE(load_in_two_units(guest.data(), value));
    EXPECT_FALSE(change_in_two_units(guest.data(), std::uint16_t{1}));
}

}  // namespace
}  // namespace guestmem
