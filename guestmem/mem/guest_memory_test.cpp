// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/guest_memory.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <latch>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "guestmem/mem/testing/choices.hpp"
#include "guestmem/mem/testing/lost_memory.hpp"
#include "guestmem/mem/testing/model_session.hpp"
#include "guestmem/mem/testing/test_map.hpp"

namespace guestmem {
namespace {

using testing::Choices;
using testing::LostMemory;
using testing::LostMemoryTest;
using testing::ModelSession;
using testing::TestMap;

static_assert(!std::is_copy_constructible_v<GuestMemory> && !std::is_move_constructible_v<GuestMemory>);
static_assert(!std::is_default_constructible_v<GuestMemory>);
static_assert(std::is_copy_constructible_v<MapView>);

// ---- the model ----

TEST(GuestMemory, AgreesWithTheModelInRandomOperations) {
    testing::count_outcomes = {};
    for (std::uint64_t seed = 1; seed <= 600; ++seed) {
        SCOPED_TRACE(::testing::Message() << "seed " << seed);
        Choices choices{seed};
        ModelSession session{choices};
        for (int i = 0; i < 250; ++i) ASSERT_EQ(session.step(), "") << "operation " << i;
    }
    // All that can happen has happened: 150000 operations that are all refused would agree as well.
    EXPECT_GT(testing::count_outcomes[0], 30000U);
    for (const AccessReason reason :
         {AccessReason::hole, AccessReason::out_of_range, AccessReason::misaligned,
          AccessReason::crosses_border, AccessReason::overflow, AccessReason::read_only, AccessReason::device,
          AccessReason::unterminated})
        EXPECT_GT(testing::count_outcomes[static_cast<std::size_t>(reason)], 100U) << to_string(reason);
}

// ---- the last hit ----

TEST(GuestMemory, RemembersARegionAndIsRightInEachOtherAllTheSame) {
    TestMap memory;
    memory.ram(0, 4096).ram(4096, 4096).rom(0x10000, 4096).device(0x20000, 4096).ram(1ULL << 40, 4096);
    GuestMemory view{memory.map()};
    for (int turn = 0; turn < 3; ++turn) {
        for (const std::uint64_t base : {0x0ULL, 0x1000ULL, 0x10000ULL, 1ULL << 40}) {
            const auto number = view.read<std::uint64_t>(GuestAddress{base + 8});
            ASSERT_TRUE(number);
            EXPECT_EQ(*number, 0U);
            // One past the region that was hit: the next one, or nothing.
            const auto beyond = view.read<std::uint8_t>(GuestAddress{base + 4096});
            EXPECT_EQ(beyond.has_value(), base == 0);
            const auto below = view.read<std::uint8_t>(GuestAddress{base - 1});
            EXPECT_EQ(below.has_value(), base == 4096);
        }
        EXPECT_FALSE(view.write<std::uint64_t>(GuestAddress{0x10000}, 1));
        EXPECT_FALSE(view.read<std::uint64_t>(GuestAddress{0x20000}));
        EXPECT_FALSE(view.write<std::uint64_t>(GuestAddress{0x20000}, 1));
    }
}

TEST(GuestMemory, DoesNotWriteToRomThatItHasJustRead) {
    TestMap memory;
    memory.rom(0x1000, 4096).read_only(0x2000, 4096).ram(0x3000, 4096);
    GuestMemory view{memory.map()};
    for (const std::uint64_t address : {0x1000ULL, 0x2ff8ULL}) {
        ASSERT_TRUE(view.read<std::uint64_t>(GuestAddress{address}));
        EXPECT_EQ(view.write<std::uint64_t>(GuestAddress{address}, 1).error(),
                  (AccessError{AccessReason::read_only, Access::write, address, 0}));
        EXPECT_EQ(view.store<std::uint64_t>(GuestAddress{address}, 1).error().reason(),
                  AccessReason::read_only);
        EXPECT_EQ(*view.read<std::uint64_t>(GuestAddress{address}), 0U);
    }
    EXPECT_TRUE(view.write<std::uint64_t>(GuestAddress{0x3000}, 1));
}

TEST(GuestMemory, HoldsItsMapAndTheRegionsOfIt) {
    auto memory = std::make_unique<TestMap>();
    memory->ram(0x1000, 4096);
    const std::weak_ptr<const Region> region = memory->shared_region(0);
    auto view = std::make_unique<GuestMemory>(memory->map());
    memory.reset();
    ASSERT_FALSE(region.expired());
    EXPECT_TRUE(view->write<std::uint64_t>(GuestAddress{0x1000}, 1));
    EXPECT_EQ(&view->map(), &view->map());
    view.reset();
    EXPECT_TRUE(region.expired());
}

TEST(MapView, AnswersForTheMapThatItWasMadeFrom) {
    TestMap memory;
    memory.ram(0x1000, 4096).device(0x3000, 4096);
    MapView view{*memory.map()};
    MapView copy = view;
    EXPECT_EQ(&copy.map(), memory.map().get());
    EXPECT_EQ(copy.hold_piece(GuestAddress{0x3000}, Access::read).error().reason(), AccessReason::device);
    EXPECT_EQ(copy.hold_piece(GuestAddress{0x2000}, Access::read).error().reason(), AccessReason::hole);
    const auto held = view.hold_piece(GuestAddress{0x1ffe}, Access::write);
    ASSERT_TRUE(held);
    EXPECT_EQ(held->region, memory.shared_region(0));
    EXPECT_EQ(held->io_log, nullptr);
    EXPECT_EQ(held->piece.host, memory.bytes(0).data() + 0xffe);
    EXPECT_EQ(held->piece.size_bytes, 2U);
    EXPECT_EQ(held->piece.offset, 0xffeU);
}

TEST(MapView, ServesManyThreadsAtOnce) {
    TestMap memory;
    for (std::uint64_t i = 0; i < 16; ++i) memory.ram(i << 20, 4096);
    MapView view{*memory.map()};
    constexpr std::uint32_t count = 160000;
    std::latch start{2};
    const auto work = [&] {
        start.arrive_and_wait();
        for (std::uint32_t i = 0; i < count; ++i)
            GM_CHECK(view.fetch_add<std::uint32_t>(GuestAddress{(i % 16) << 20}, 1));
    };
    std::thread other{work};
    work();
    other.join();
    for (std::uint64_t i = 0; i < 16; ++i)
        EXPECT_EQ(*view.load<std::uint32_t>(GuestAddress{i << 20}), 2 * count / 16);
}

// ---- what does not tear ----

/// Writes all zeros and all ones in turn through `write` on one thread, until `read` was called often enough on
/// another; what `is_whole` says of what was read, for all reads. Reads see both values, or nothing was shown.
template <typename Write, typename Read>
void expect_never_torn(Write&& write, Read&& read) {
    constexpr int count_reads = 30000;
    std::atomic<bool> is_over{false};
    write(0);  // what an earlier case left there may be half of each
    std::thread writer{[&] {
        for (int i = 0; !is_over.load(std::memory_order_relaxed); ++i) write(i % 2 == 0 ? 0xff : 0);
    }};
    int count_torn = 0;
    int count_ones = 0;
    int count_zeros = 0;
    for (int i = 0; i < count_reads || ((count_ones == 0 || count_zeros == 0) && i < 1000 * count_reads);
         ++i) {
        // Each aligned piece of 8, 4 or 2 bytes on its own.
        const std::vector<std::uint64_t> pieces = read();
        for (const std::uint64_t piece : pieces) {
            if (piece == 0)
                ++count_zeros;
            else if (piece == ~std::uint64_t{0})
                ++count_ones;
            else
                ++count_torn;
        }
    }
    is_over.store(true);
    writer.join();
    EXPECT_EQ(count_torn, 0);
    EXPECT_GT(count_zeros, 0);
    EXPECT_GT(count_ones, 0);
}

template <std::size_t size>
using Bytes = std::array<std::uint8_t, size>;

template <std::size_t size>
Bytes<size> all(int value) {
    Bytes<size> bytes{};
    bytes.fill(static_cast<std::uint8_t>(value));
    return bytes;
}

/// The u64 at each of those offsets of an object.
template <std::size_t size>
std::vector<std::uint64_t> fields_of(const Bytes<size>& bytes, std::initializer_list<std::size_t> offsets) {
    std::vector<std::uint64_t> fields;
    for (const std::size_t offset : offsets) {
        std::uint64_t field = 0;
        std::memcpy(&field, bytes.data() + offset, sizeof field);
        fields.push_back(field);
    }
    return fields;
}

class NeverTornTest : public ::testing::Test {
protected:
    static TestMap machine() {
        TestMap memory;
        memory.ram(0, 4096).ram(4096, 4096);
        return memory;
    }
    TestMap memory_ = machine();
    GuestMemory writer_{memory_.map()};
    GuestMemory reader_{memory_.map()};
};

template <typename T>
void expect_whole_integer(GuestMemory& writer, GuestMemory& reader, GuestAddress at) {
    SCOPED_TRACE(sizeof(T));
    const auto widen = [](T value) {
        // All ones of T are all ones of 64 bits, all zeros are zero, what is torn is neither.
        return value == static_cast<T>(~T{0}) ? ~std::uint64_t{0} : value == 0 ? 0 : std::uint64_t{1};
    };
    expect_never_torn([&](int value) { GM_CHECK(writer.write(at, static_cast<T>(value == 0 ? 0 : ~T{0}))); },
                      [&] { return std::vector{widen(*reader.read<T>(at))}; });
}

TEST_F(NeverTornTest, AnAlignedIntegerIsReadAndWrittenWhole) {
    expect_whole_integer<std::uint64_t>(writer_, reader_, GuestAddress{64});
    expect_whole_integer<std::uint32_t>(writer_, reader_, GuestAddress{4092});
    expect_whole_integer<std::uint16_t>(writer_, reader_, GuestAddress{4094});
}

/// An object of that size at `at`, with u64 fields at those offsets, which are aligned in the guest.
template <std::size_t size>
void expect_whole_fields(GuestMemory& writer, GuestMemory& reader, GuestAddress at,
                         std::initializer_list<std::size_t> offsets) {
    SCOPED_TRACE(::testing::Message() << size << " bytes at " << at.value());
    expect_never_torn([&](int value) { GM_CHECK(writer.write(at, all<size>(value))); },
                      [&] { return fields_of(*reader.read<Bytes<size>>(at), offsets); });
}

TEST_F(NeverTornTest, AnAlignedFieldInsideAnObjectIsReadAndWrittenWhole) {
    expect_whole_fields<12>(writer_, reader_, GuestAddress{64}, {0});
    expect_whole_fields<12>(writer_, reader_, GuestAddress{68}, {4});
    expect_whole_fields<16>(writer_, reader_, GuestAddress{64}, {0, 8});
    expect_whole_fields<20>(writer_, reader_, GuestAddress{60}, {4, 12});
    expect_whole_fields<64>(writer_, reader_, GuestAddress{96}, {0, 8, 16, 24, 32, 40, 48, 56});
    expect_whole_fields<64>(writer_, reader_, GuestAddress{99}, {5, 13, 21, 29, 37, 45, 53});
    // Across the border of two regions.
    expect_whole_fields<16>(writer_, reader_, GuestAddress{4088}, {0, 8});
    expect_whole_fields<64>(writer_, reader_, GuestAddress{4072}, {0, 8, 16, 24, 32, 40, 48, 56});
}

TEST_F(NeverTornTest, AFieldOfBytesThatAreFilledOrCopiedIsWhole) {
    const GuestAddress at{128};
    const auto read = [&] { return fields_of(*reader_.read<Bytes<64>>(at), {0, 8, 16, 56}); };
    expect_never_torn([&](int value) { GM_CHECK(writer_.fill(at, static_cast<std::byte>(value), 64)); },
                      read);
    ASSERT_TRUE(writer_.fill(GuestAddress{1024}, std::byte{0xff}, 64));
    expect_never_torn(
        [&](int value) { GM_CHECK(writer_.copy(at, GuestAddress{value == 0 ? 2048U : 1024U}, 64)); }, read);
}

TEST_F(NeverTornTest, AtomicOperationsOfTwoThreadsLoseNoCount) {
    constexpr std::uint64_t count = 100000;
    std::latch start{2};
    const auto work = [&](GuestMemory& memory, std::uint32_t bit) {
        start.arrive_and_wait();
        for (std::uint64_t i = 0; i < count; ++i) {
            GM_CHECK(memory.fetch_add<std::uint64_t>(GuestAddress{0}, 1));
            GM_CHECK(memory.fetch_add<std::uint8_t>(GuestAddress{9}, 3));
            GM_CHECK(memory.fetch_or<std::uint32_t>(GuestAddress{16}, bit));
            GM_CHECK((*memory.fetch_and<std::uint32_t>(GuestAddress{16}, ~bit) & bit) != 0);
            for (std::uint16_t seen = 0;;) {
                const auto done = memory.compare_exchange<std::uint16_t>(
                    GuestAddress{32}, seen, static_cast<std::uint16_t>(seen + 1));
                GM_CHECK(done);
                if (done->is_exchanged) break;
                seen = done->previous;
            }
        }
    };
    std::thread other{[&] { work(writer_, 1); }};
    work(reader_, 2);
    other.join();
    EXPECT_EQ(*reader_.load<std::uint64_t>(GuestAddress{0}), 2 * count);
    EXPECT_EQ(*reader_.load<std::uint8_t>(GuestAddress{9}), static_cast<std::uint8_t>(6 * count));
    EXPECT_EQ(*reader_.load<std::uint32_t>(GuestAddress{16}), 0U);
    EXPECT_EQ(*reader_.load<std::uint16_t>(GuestAddress{32}), static_cast<std::uint16_t>(2 * count));
}

TEST_F(NeverTornTest, SequentiallyConsistentStoresAreSeenByOneOfTwoReaders) {
    // Store buffering: each thread stores its flag, then loads the other's. Both reading 0 is what weaker orders allow.
    constexpr GuestAddress flags[2] = {GuestAddress{0}, GuestAddress{2048}};
    constexpr int count = 20000;
    std::array<std::atomic<int>, 2> round{};
    std::array<std::vector<std::uint32_t>, 2> seen{std::vector<std::uint32_t>(count),
                                                   std::vector<std::uint32_t>(count)};
    const auto work = [&](std::size_t me, GuestMemory& memory) {
        for (int i = 0; i < count; ++i) {
            round[me].store(i + 1);
            while (round[1 - me].load() < i + 1) std::this_thread::yield();
            const auto mark = static_cast<std::uint32_t>(i + 1);
            GM_CHECK(memory.store<std::uint32_t>(flags[me], mark, std::memory_order_seq_cst));
            seen[me][static_cast<std::size_t>(i)] =
                *memory.load<std::uint32_t>(flags[1 - me], std::memory_order_seq_cst);
        }
    };
    std::thread other{[&] { work(1, writer_); }};
    work(0, reader_);
    other.join();
    int count_both_missed = 0;
    for (std::size_t i = 0; i < count; ++i)
        if (seen[0][i] <= i && seen[1][i] <= i) ++count_both_missed;
    EXPECT_EQ(count_both_missed, 0);
}

// ---- memory that comes and goes while it is used ----

using GuestMemoryLostTest = LostMemoryTest;

TEST_P(GuestMemoryLostTest, ReadersAndWritersSurviveWhileTheMemoryComesAndGoes) {
    const std::shared_ptr<const MemoryMap> map = lost_.map().map();
    std::atomic<bool> is_over{false};
    std::array<std::atomic<std::uint64_t>, 2> count_faults{};
    std::atomic<std::uint64_t> count_wrong{0};
    const auto work = [&](std::size_t me) {
        GM_CHECK(prepare_thread_for_guest_memory());
        GuestMemory memory{map};
        std::vector<std::byte> buffer(LostMemory::size_bytes);
        const auto note = [&](const auto& result) {
            if (result) return;
            if (result.error().reason() == AccessReason::fault)
                ++count_faults[me];
            else
                ++count_wrong;
        };
        for (std::uint64_t i = 0; !is_over.load(std::memory_order_relaxed); ++i) {
            const GuestAddress at{LostMemory::base + (i * 1000) % (LostMemory::size_bytes - 8)};
            note(memory.read<std::uint64_t>(at));
            note(memory.fetch_add<std::uint32_t>(LostMemory::page(i % 4), 1));
            note(memory.write_bytes(GuestAddress{LostMemory::base - 64}, buffer));
            note(memory.read_bytes(GuestAddress{LostMemory::base}, buffer));
            note(memory.fill(LostMemory::page(2), std::byte{1}, page_size_bytes));
            note(memory.copy(LostMemory::page(1), LostMemory::page(0), 2 * page_size_bytes));
            note(memory.read_string(LostMemory::page(3), page_size_bytes - 1));
        }
    };
    std::thread first{work, 0U};
    std::thread second{work, 1U};
    for (int turn = 0; turn < 20 || (turn < 20000 && (count_faults[0] == 0 || count_faults[1] == 0));
         ++turn) {
        lost_.lose_from(static_cast<std::uint64_t>(turn % 4));
        std::this_thread::sleep_for(std::chrono::microseconds{500});
        lost_.find_again();
        std::this_thread::sleep_for(std::chrono::microseconds{200});
    }
    is_over.store(true);
    first.join();
    second.join();
    EXPECT_GT(count_faults[0], 0U);
    EXPECT_GT(count_faults[1], 0U);
    EXPECT_EQ(count_wrong, 0U);
}

INSTANTIATE_TEST_SUITE_P(, GuestMemoryLostTest, testing::all_ways_to_lose());

}  // namespace
}  // namespace guestmem
