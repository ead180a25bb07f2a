// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/typed_access.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <thread>
#include <type_traits>
#include <vector>

#include "guestmem/mem/guest_memory.hpp"
#include "guestmem/mem/testing/lost_memory.hpp"
#include "guestmem/mem/testing/test_map.hpp"

namespace guestmem {
namespace {

using testing::counted_bytes;
using testing::is_all;
using testing::LostMemory;
using testing::LostMemoryTest;
using testing::TestMap;
using Numbers = std::vector<std::uint64_t>;

constexpr std::uint64_t last_address = std::numeric_limits<std::uint64_t>::max();

template <std::size_t count>
struct Blob {
    std::array<std::uint8_t, count> bytes;
    friend bool operator==(const Blob&, const Blob&) = default;
};

/// All views of one map do the same: RAM of 64 bytes at 0x1000 and at 0x1040, 5 at 0x1080, 9 at 0x1085; a hole; ROM at
/// 0x2000, RAM behind it, a device at 0x2080; the last 64 bytes.
template <typename View>
class TypedAccessTest : public ::testing::Test {
protected:
    static TestMap machine() {
        TestMap memory;
        memory.shifted_ram(0x1000, 64, 0).shifted_ram(0x1040, 64, 0).shifted_ram(0x1080, 5, 0);
        memory.shifted_ram(0x1085, 9, 0).rom(0x2000, 64).ram(0x2040, 64).device(0x2080, 64);
        memory.ram(last_address - 63, 64);
        memory.count_up().start_tracking();
        return memory;
    }

    TestMap memory_ = machine();
    View view_{memory_.map()};
};

using Views = ::testing::Types<testing::MapViewOfMap, testing::GuestMemoryOfMap, testing::MapReaderOfMap>;
TYPED_TEST_SUITE(TypedAccessTest, Views);

/// Writes and reads a T at each address of [0x1000, 0x108e), and looks at all bytes behind the library's back.
template <typename T, typename View>
void expect_round_trip_everywhere(View& view, const TestMap& memory) {
    std::array<std::uint8_t, 0x8e> expected{};
    const std::array<std::span<std::byte>, 4> hosts{memory.bytes(0), memory.bytes(1), memory.bytes(2),
                                                    memory.bytes(3)};
    for (std::uint64_t offset = 0; offset + sizeof(T) <= expected.size(); ++offset) {
        SCOPED_TRACE(::testing::Message() << sizeof(T) << " bytes at offset " << offset);
        for (const auto host : hosts) std::ranges::fill(host, std::byte{0x55});
        expected.fill(0x55);
        std::array<std::uint8_t, sizeof(T)> bytes{};
        for (std::size_t i = 0; i < sizeof(T); ++i) bytes[i] = static_cast<std::uint8_t>(0x81 + offset + i);
        std::ranges::copy(bytes, expected.begin() + static_cast<std::ptrdiff_t>(offset));
        ASSERT_TRUE(view.write(GuestAddress{0x1000 + offset}, std::bit_cast<T>(bytes)));
        std::array<std::uint8_t, 0x8e> found{};
        auto* at = found.data();
        for (const auto host : hosts)
            at = static_cast<std::uint8_t*>(std::memcpy(at, host.data(), host.size())) + host.size();
        ASSERT_EQ(found, expected);
        const auto read = view.template read<T>(GuestAddress{0x1000 + offset});
        ASSERT_TRUE(read);
        ASSERT_EQ((std::bit_cast<std::array<std::uint8_t, sizeof(T)>>(*read)), bytes);
    }
}

TYPED_TEST(TypedAccessTest, MovesObjectsOfAnySizeAtAnyAddressAcrossAnyBorder) {
    auto& view = *this->view_;
    expect_round_trip_everywhere<std::uint8_t>(view, this->memory_);
    expect_round_trip_everywhere<std::uint16_t>(view, this->memory_);
    expect_round_trip_everywhere<std::uint32_t>(view, this->memory_);
    expect_round_trip_everywhere<std::uint64_t>(view, this->memory_);
    expect_round_trip_everywhere<std::int64_t>(view, this->memory_);
    expect_round_trip_everywhere<Blob<3>>(view, this->memory_);
    expect_round_trip_everywhere<Blob<8>>(view, this->memory_);
    expect_round_trip_everywhere<Blob<12>>(view, this->memory_);
    expect_round_trip_everywhere<Blob<16>>(view, this->memory_);
    expect_round_trip_everywhere<Blob<64>>(view, this->memory_);
    expect_round_trip_everywhere<Blob<100>>(view, this->memory_);
}

TYPED_TEST(TypedAccessTest, KeepsFloatingPointAndSignedValues) {
    auto& view = *this->view_;
    ASSERT_TRUE(view.write(GuestAddress{0x1008}, -1.5));
    EXPECT_EQ(*view.template read<double>(GuestAddress{0x1008}), -1.5);
    ASSERT_TRUE(view.write(GuestAddress{0x103e}, 0.25F));
    EXPECT_EQ(*view.template read<float>(GuestAddress{0x103e}), 0.25F);
    ASSERT_TRUE(view.write(GuestAddress{0x1010}, std::int16_t{-2}));
    EXPECT_EQ(*view.template read<std::int16_t>(GuestAddress{0x1010}), -2);
    EXPECT_EQ(*view.template read<std::uint16_t>(GuestAddress{0x1010}), 0xfffe);
    EXPECT_EQ(*view.template load<std::int16_t>(GuestAddress{0x1010}), -2);
}

template <typename T, typename View>
void expect_refused(View& view, std::uint64_t address, Access access, AccessReason reason,
                    std::uint64_t refused, std::uint64_t count_done) {
    SCOPED_TRACE(::testing::Message() << sizeof(T) << " bytes at " << std::hex << address);
    const AccessError expected{reason, access, refused, count_done};
    if (access == Access::read) {
        const auto read = view.template read<T>(GuestAddress{address});
        ASSERT_FALSE(read);
        EXPECT_EQ(read.error(), expected);
    } else {
        const auto written = view.write(GuestAddress{address}, T{});
        ASSERT_FALSE(written);
        EXPECT_EQ(written.error(), expected);
    }
}

TYPED_TEST(TypedAccessTest, TellsWhyAnObjectIsRefusedAndLeavesWhatIsThere) {
    auto& view = *this->view_;
    const auto all = [&] {
        std::vector<std::byte> bytes;
        for (const std::size_t i : {0U, 1U, 2U, 3U, 4U, 5U, 7U})
            bytes.insert(bytes.end(), this->memory_.bytes(i).begin(), this->memory_.bytes(i).end());
        return bytes;
    };
    const std::vector<std::byte> before = all();
    using enum AccessReason;
    expect_refused<std::uint64_t>(view, 0xfff, Access::read, hole, 0xfff, 0);
    expect_refused<std::uint64_t>(view, 0x108b, Access::read, hole, 0x108e, 3);
    expect_refused<std::uint64_t>(view, 0x108b, Access::write, hole, 0x108e, 0);
    expect_refused<std::uint32_t>(view, 0x108d, Access::write, hole, 0x108e, 0);
    expect_refused<Blob<100>>(view, 0x1040, Access::write, hole, 0x108e, 0);
    expect_refused<Blob<100>>(view, 0x1040, Access::read, hole, 0x108e, 0x4e);
    expect_refused<std::uint8_t>(view, 0x2000, Access::write, read_only, 0x2000, 0);
    expect_refused<std::uint64_t>(view, 0x2038, Access::write, read_only, 0x2038, 0);
    expect_refused<std::uint64_t>(view, 0x203c, Access::write, read_only, 0x203c, 0);
    expect_refused<std::uint64_t>(view, 0x207c, Access::read, device, 0x2080, 4);
    expect_refused<std::uint64_t>(view, 0x207c, Access::write, device, 0x2080, 0);
    expect_refused<std::uint16_t>(view, 0x2080, Access::read, device, 0x2080, 0);
    expect_refused<std::uint64_t>(view, last_address - 6, Access::read, overflow, last_address - 6, 0);
    expect_refused<std::uint16_t>(view, last_address, Access::write, overflow, last_address, 0);
    expect_refused<Blob<12>>(view, last_address - 3, Access::write, overflow, last_address - 3, 0);
    EXPECT_EQ(all(), before);
    for (const std::size_t i : {0U, 1U, 2U, 3U, 4U, 5U, 7U}) EXPECT_TRUE(this->memory_.take_dirty(i).empty());
    // What is refused in one place is not remembered in another.
    EXPECT_TRUE(view.template read<std::uint64_t>(GuestAddress{last_address - 7}));
    EXPECT_TRUE(view.template read<std::uint64_t>(GuestAddress{0x2000}));
    EXPECT_TRUE(view.template write<std::uint64_t>(GuestAddress{last_address - 7}, 1));
}

TYPED_TEST(TypedAccessTest, OrdersBytesAsTheNameSays) {
    auto& view = *this->view_;
    for (const std::uint64_t address : {0x1000ULL, 0x1001ULL, 0x103dULL, 0x1080ULL}) {
        SCOPED_TRACE(address);
        const GuestAddress at{address};
        ASSERT_TRUE(view.write_le(at, std::uint32_t{0x01020304}));
        EXPECT_EQ((*view.template read<Blob<4>>(at)).bytes, (std::array<std::uint8_t, 4>{4, 3, 2, 1}));
        EXPECT_EQ(*view.template read_be<std::uint32_t>(at), 0x04030201U);
        ASSERT_TRUE(view.write_be(at, std::uint32_t{0x01020304}));
        EXPECT_EQ((*view.template read<Blob<4>>(at)).bytes, (std::array<std::uint8_t, 4>{1, 2, 3, 4}));
        EXPECT_EQ(*view.template read_le<std::uint32_t>(at), 0x04030201U);
    }
    ASSERT_TRUE(view.write_be(GuestAddress{0x1008}, std::uint64_t{1}));
    EXPECT_EQ(*view.template read<std::uint8_t>(GuestAddress{0x100f}), 1);
    ASSERT_TRUE(view.write_be(GuestAddress{0x1008}, std::uint16_t{1}));
    EXPECT_EQ(*view.template read_be<std::uint16_t>(GuestAddress{0x1008}), 1);
    EXPECT_EQ(*view.template read<std::uint8_t>(GuestAddress{0x1009}), 1);
    EXPECT_EQ(view.template read_be<std::uint64_t>(GuestAddress{0x2080}).error().reason(),
              AccessReason::device);
    EXPECT_EQ(view.write_le(GuestAddress{0x2000}, std::uint64_t{1}).error().reason(),
              AccessReason::read_only);
}

TYPED_TEST(TypedAccessTest, MovesArraysAcrossBorders) {
    auto& view = *this->view_;
    const std::array<std::uint32_t, 20> from{1,  2,  3,  4,  5,  6,  7,  8,  9,  10,
                                             11, 12, 13, 14, 15, 16, 17, 18, 19, 20};
    ASSERT_TRUE(view.template write_array<std::uint32_t>(GuestAddress{0x1012}, from));
    std::array<std::uint32_t, 20> to{};
    ASSERT_TRUE(view.template read_array<std::uint32_t>(GuestAddress{0x1012}, to));
    EXPECT_EQ(to, from);
    EXPECT_EQ(*view.template read<std::uint32_t>(GuestAddress{0x1012 + 4 * 19}), 20U);
    EXPECT_EQ(view.template read_array<std::uint32_t>(GuestAddress{0x1060}, to).error(),
              (AccessError{AccessReason::hole, Access::read, 0x108e, 0x2e}));
    EXPECT_TRUE(view.template read_array<std::uint32_t>(GuestAddress{0}, {}));
}

// ---- atomic operations ----

template <typename T>
constexpr T odd_value = static_cast<T>(0x8182838485868788ULL >> (64 - 8 * sizeof(T)));

/// Each operation does what its std::atomic namesake does to the same value, and marks its page.
template <typename T, typename View>
void expect_atomics_as_std(View& view, const TestMap& memory) {
    SCOPED_TRACE(::testing::Message() << sizeof(T) << " bytes, signed: " << std::is_signed_v<T>);
    constexpr GuestAddress at{0x1048};
    constexpr std::memory_order orders[] = {std::memory_order_relaxed, std::memory_order_acquire,
                                            std::memory_order_release, std::memory_order_acq_rel,
                                            std::memory_order_seq_cst};
    const auto max = std::numeric_limits<T>::max();
    const Numbers marked{0};
    for (const T start : {T{0}, static_cast<T>(-1), max, odd_value<T>}) {
        for (const T operand : {T{0}, T{1}, static_cast<T>(-1), max, odd_value<T>}) {
            for (const std::memory_order order : orders) {
                std::atomic<T> twin{start};
                const auto expect = [&](const AccessResult<T>& result, T previous) {
                    ASSERT_TRUE(result);
                    EXPECT_EQ(*result, previous);
                    EXPECT_EQ(*view.template load<T>(at), twin.load());
                    EXPECT_EQ(memory.take_dirty(1), marked);
                };
                ASSERT_TRUE(view.template store<T>(at, start));
                EXPECT_EQ(memory.take_dirty(1), marked);
                expect(view.template fetch_add<T>(at, operand, order), twin.fetch_add(operand));
                expect(view.template fetch_or<T>(at, operand, order), twin.fetch_or(operand));
                expect(view.template fetch_add<T>(at, operand, order), twin.fetch_add(operand));
                expect(view.template fetch_and<T>(at, operand, order), twin.fetch_and(operand));
                expect(view.template exchange<T>(at, operand, order), twin.exchange(operand));

                const auto done = view.template compare_exchange<T>(at, operand, start, order);
                EXPECT_TRUE(done->is_exchanged);
                EXPECT_EQ(done->previous, operand);
                EXPECT_EQ(*view.template load<T>(at), start);
                EXPECT_EQ(memory.take_dirty(1), marked);
                const T other = static_cast<T>(start ^ 1);
                const auto failed = view.template compare_exchange<T>(at, other, operand, order);
                EXPECT_FALSE(failed->is_exchanged);
                EXPECT_EQ(failed->previous, start);
                EXPECT_EQ(*view.template load<T>(at), start);
                EXPECT_TRUE(memory.take_dirty(1).empty());
            }
        }
    }
    for (const auto order :
         {std::memory_order_relaxed, std::memory_order_release, std::memory_order_seq_cst}) {
        ASSERT_TRUE(view.template store<T>(at, odd_value<T>, order));
        EXPECT_EQ(memory.take_dirty(1), marked);
        for (const auto load_order :
             {std::memory_order_relaxed, std::memory_order_acquire, std::memory_order_seq_cst})
            EXPECT_EQ(*view.template load<T>(at, load_order), odd_value<T>);
    }
    EXPECT_TRUE(memory.take_dirty(1).empty());
    // Not one byte beside it.
    EXPECT_EQ(*view.template read<std::uint8_t>(GuestAddress{at.value() - 1}),
              std::to_integer<std::uint8_t>(counted_bytes(1, 0x47)[0]));
    EXPECT_EQ(*view.template read<std::uint8_t>(GuestAddress{at.value() + 8}),
              std::to_integer<std::uint8_t>(counted_bytes(1, 0x50)[0]));
}

TYPED_TEST(TypedAccessTest, DoesAtomicOperationsAsStdAtomicDoes) {
    auto& view = *this->view_;
    expect_atomics_as_std<std::uint8_t>(view, this->memory_);
    expect_atomics_as_std<std::int8_t>(view, this->memory_);
    expect_atomics_as_std<std::uint16_t>(view, this->memory_);
    expect_atomics_as_std<std::int16_t>(view, this->memory_);
    expect_atomics_as_std<std::uint32_t>(view, this->memory_);
    expect_atomics_as_std<std::int32_t>(view, this->memory_);
    expect_atomics_as_std<std::uint64_t>(view, this->memory_);
    expect_atomics_as_std<std::int64_t>(view, this->memory_);
}

/// What all atomic operations on a T at that address say; nothing when they succeed.
template <typename T, typename View>
std::vector<std::pair<Access, AccessError>> refusals(View& view, std::uint64_t address) {
    std::vector<std::pair<Access, AccessError>> found;
    const GuestAddress at{address};
    const auto add = [&](Access access, const auto& result) {
        if (!result) found.emplace_back(access, result.error());
    };
    add(Access::read, view.template load<T>(at));
    add(Access::write, view.template store<T>(at, T{1}));
    add(Access::write, view.template exchange<T>(at, T{1}));
    add(Access::write, view.template compare_exchange<T>(at, T{1}, T{1}));
    add(Access::write, view.template fetch_add<T>(at, T{0}));
    add(Access::write, view.template fetch_or<T>(at, T{1}));
    add(Access::write, view.template fetch_and<T>(at, T{1}));
    return found;
}

template <typename T, typename View>
void expect_all_refused(View& view, std::uint64_t address, AccessReason reason, std::uint64_t refused) {
    SCOPED_TRACE(::testing::Message() << sizeof(T) << " bytes at " << std::hex << address);
    const auto found = refusals<T>(view, address);
    ASSERT_EQ(found.size(), 7U);
    for (const auto& [access, error] : found) EXPECT_EQ(error, (AccessError{reason, access, refused, 0}));
}

TYPED_TEST(TypedAccessTest, RefusesAtomicOperationsForTheirOwnReasons) {
    auto& view = *this->view_;
    using enum AccessReason;
    expect_all_refused<std::uint16_t>(view, 0x1001, misaligned, 0x1001);
    expect_all_refused<std::uint32_t>(view, 0x1002, misaligned, 0x1002);
    expect_all_refused<std::uint64_t>(view, 0x1004, misaligned, 0x1004);
    expect_all_refused<std::uint64_t>(view, 0x1200004, misaligned, 0x1200004);
    expect_all_refused<std::uint32_t>(view, 0x1084, crosses_border, 0x1084);
    expect_all_refused<std::uint64_t>(view, 0x1080, crosses_border, 0x1080);
    expect_all_refused<std::uint16_t>(view, 0x1090, hole, 0x1090);
    expect_all_refused<std::uint64_t>(view, 0x1088, hole, 0x108e);
    expect_all_refused<std::uint32_t>(view, 0x108c, hole, 0x108e);
    expect_all_refused<std::uint64_t>(view, 0x2080, device, 0x2080);
    expect_all_refused<std::uint64_t>(view, last_address - 3, misaligned, last_address - 3);
    EXPECT_TRUE(refusals<std::uint64_t>(view, last_address - 7).empty());
    EXPECT_TRUE(refusals<std::uint8_t>(view, last_address).empty());

    const std::vector<std::byte> rom(this->memory_.bytes(4).begin(), this->memory_.bytes(4).end());
    const auto found = refusals<std::uint64_t>(view, 0x2038);
    ASSERT_EQ(found.size(), 6U);  // all but the load
    for (const auto& [access, error] : found)
        EXPECT_EQ(error, (AccessError{read_only, Access::write, 0x2038, 0}));
    EXPECT_TRUE(std::ranges::equal(this->memory_.bytes(4), rom));
}

TYPED_TEST(TypedAccessTest, DoesAtomicOperationsInRegionsOfAFewBytes) {
    TestMap memory;
    memory.shifted_ram(0x1000, 1, 0).shifted_ram(0x1002, 2, 0).shifted_ram(0x1004, 4, 0);
    memory.shifted_ram(0x1008, 7, 0).shifted_ram(0x1010, 8, 0).start_tracking();
    TypeParam holder{memory.map()};
    auto& view = *holder;
    EXPECT_TRUE(refusals<std::uint8_t>(view, 0x1000).empty());
    EXPECT_TRUE(refusals<std::uint16_t>(view, 0x1002).empty());
    EXPECT_TRUE(refusals<std::uint32_t>(view, 0x1004).empty());
    EXPECT_TRUE(refusals<std::uint32_t>(view, 0x1008).empty());
    EXPECT_TRUE(refusals<std::uint16_t>(view, 0x100c).empty());
    EXPECT_TRUE(refusals<std::uint64_t>(view, 0x1010).empty());
    expect_all_refused<std::uint32_t>(view, 0x1000, AccessReason::hole, 0x1001);
    expect_all_refused<std::uint64_t>(view, 0x1008, AccessReason::hole, 0x100f);
    for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(memory.take_dirty(i), Numbers{0}) << i;
}

TYPED_TEST(TypedAccessTest, RefusesAtomicOperationsThatTheHostCannotDo) {
    for (std::size_t distance = 0; distance < 8; ++distance) {
        SCOPED_TRACE(::testing::Message() << "host memory " << distance << " bytes off");
        TestMap memory;
        memory.shifted_ram(0x1000, 64, distance).count_up();
        TypeParam holder{memory.map()};
        auto& view = *holder;
        for (const std::uint64_t address : {0x1000ULL, 0x1038ULL}) {
            EXPECT_TRUE(refusals<std::uint8_t>(view, address).empty());
            EXPECT_EQ(refusals<std::uint16_t>(view, address).size(), distance % 2 == 0 ? 0U : 7U);
            EXPECT_EQ(refusals<std::uint32_t>(view, address).size(), distance % 4 == 0 ? 0U : 7U);
            if (distance == 0) continue;
            expect_all_refused<std::uint64_t>(view, address, AccessReason::misaligned, address);
        }
        // Plain objects do not mind.
        ASSERT_TRUE(view.template write<std::uint64_t>(GuestAddress{0x1008}, odd_value<std::uint64_t>));
        EXPECT_EQ(*view.template read<std::uint64_t>(GuestAddress{0x1008}), odd_value<std::uint64_t>);
    }
}

TYPED_TEST(TypedAccessTest, MarksThePagesOfEachObjectAndNoOther) {
    TestMap memory;
    memory.ram(0x1000, 256).ram(0x1100, 256).start_tracking();
    TypeParam holder{memory.map()};
    auto& view = *holder;
    const auto expect_dirty = [&](const AccessResult<void>& written, const Numbers& low,
                                  const Numbers& high) {
        ASSERT_TRUE(written);
        EXPECT_EQ(memory.take_dirty(0), low);
        EXPECT_EQ(memory.take_dirty(1), high);
    };
    const auto at = [](std::uint64_t offset) { return GuestAddress{0x1000 + offset}; };
    expect_dirty(view.template write<std::uint8_t>(at(63), 1), {0}, {});
    expect_dirty(view.template write<std::uint8_t>(at(64), 1), {1}, {});
    expect_dirty(view.template write<std::uint64_t>(at(60), 1), {0, 1}, {});
    expect_dirty(view.template write<std::uint64_t>(at(252), 1), {3}, {0});
    expect_dirty(view.template write<std::uint16_t>(at(255), 1), {3}, {0});
    expect_dirty(view.template write<std::uint32_t>(at(255), 1), {3}, {0});
    expect_dirty(view.template write<std::uint8_t>(at(255), 1), {3}, {});
    expect_dirty(view.template write<std::uint64_t>(at(256), 1), {}, {0});
    expect_dirty(view.write(at(250), Blob<12>{}), {3}, {0});
    expect_dirty(view.write(at(100), Blob<100>{}), {1, 2, 3}, {});
    expect_dirty(view.write_be(at(62), std::uint32_t{1}), {0, 1}, {});
    expect_dirty(view.template write_array<std::uint32_t>(at(128), std::array<std::uint32_t, 40>{}), {2, 3},
                 {0});
    EXPECT_TRUE(view.template read<std::uint64_t>(at(252)));
    EXPECT_TRUE(memory.take_dirty(0).empty());
}

// ---- memory that the host has lost ----

class TypedAccessLostTest : public LostMemoryTest {
protected:
    GuestMemory memory_{lost_.map().map()};
};

TEST_P(TypedAccessLostTest, GivesAFaultForObjectsAndAtomicsAndMarksNothing) {
    lost_.lose_from(2);
    const std::uint64_t caught = count_caught_faults();
    const std::uint64_t address = LostMemory::page(2).value();
    const AccessError read_fault{AccessReason::fault, Access::read, address, 0};
    const AccessError write_fault{AccessReason::fault, Access::write, address, 0};
    for (int turn = 0; turn < 2; ++turn) {
        EXPECT_EQ(memory_.read<std::uint8_t>(LostMemory::page(2)).error(), read_fault);
        EXPECT_EQ(memory_.read<std::uint64_t>(LostMemory::page(2)).error(), read_fault);
        EXPECT_EQ(memory_.read<Blob<12>>(LostMemory::page(2)).error(), read_fault);
        EXPECT_EQ(memory_.read<Blob<100>>(LostMemory::page(2)).error(), read_fault);
        EXPECT_EQ(memory_.read_be<std::uint32_t>(LostMemory::page(2)).error(), read_fault);
        EXPECT_EQ(memory_.write<std::uint16_t>(LostMemory::page(2), 1).error(), write_fault);
        EXPECT_EQ(memory_.write(LostMemory::page(2), Blob<64>{}).error(), write_fault);
        expect_all_refused<std::uint8_t>(memory_, address, AccessReason::fault, address);
        expect_all_refused<std::uint16_t>(memory_, address, AccessReason::fault, address);
        expect_all_refused<std::uint32_t>(memory_, address, AccessReason::fault, address);
        expect_all_refused<std::uint64_t>(memory_, address, AccessReason::fault, address);
    }
    EXPECT_GE(count_caught_faults() - caught, 70U);
    for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(lost_.map().take_dirty(i).empty());
    // The page before and the region behind are good; so is the page once it is back.
    EXPECT_TRUE(memory_.write<std::uint64_t>(GuestAddress{address - 8}, 1));
    EXPECT_TRUE(memory_.write<std::uint64_t>(LostMemory::page(4), 1));
    lost_.find_again();
    EXPECT_TRUE(refusals<std::uint64_t>(memory_, address).empty());
}

TEST_P(TypedAccessLostTest, WritesNothingOfAnIntegerThatReachesIntoALostPage) {
    lost_.lose_from(2);
    for (const std::uint64_t before : {1U, 3U, 4U, 7U}) {
        SCOPED_TRACE(before);
        const GuestAddress address{LostMemory::page(2).value() - before};
        const std::uint64_t lost = LostMemory::page(2).value();
        EXPECT_EQ(memory_.write(address, ~std::uint64_t{0}).error(),
                  (AccessError{AccessReason::fault, Access::write, lost, 0}));
        EXPECT_EQ(memory_.read<std::uint64_t>(address).error(),
                  (AccessError{AccessReason::fault, Access::read, lost, before}));
        EXPECT_TRUE(is_all(lost_.bytes().first(2 * page_size_bytes), std::byte{0}));
        EXPECT_TRUE(lost_.map().take_dirty(LostMemory::number).empty());
    }
}

TEST_P(TypedAccessLostTest, CountsTheBytesOfALargerObjectBeforeALostPage) {
    lost_.lose_from(2);
    const std::uint64_t border = LostMemory::page(2).value();
    for (const std::uint64_t before : {1U, 4U, 9U, 11U}) {
        SCOPED_TRACE(before);
        const GuestAddress address{border - before};
        EXPECT_EQ(memory_.read<Blob<12>>(address).error(),
                  (AccessError{AccessReason::fault, Access::read, border, before}));
        EXPECT_EQ(memory_.write(address, Blob<12>{.bytes = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}).error(),
                  (AccessError{AccessReason::fault, Access::write, border, before}));
        EXPECT_EQ(lost_.map().take_dirty(LostMemory::number), Numbers{2 * page_size_bytes / 64 - 1});
        EXPECT_EQ(lost_.bytes()[2 * page_size_bytes - 1], static_cast<std::byte>(before));
    }
}

TEST_P(TypedAccessLostTest, AnIntegerAcrossARegionsBorderIsAFaultWhereTheLostPageIs) {
    lost_.lose_from(0);
    for (const std::uint64_t below : {1U, 2U, 5U}) {
        SCOPED_TRACE(below);
        const GuestAddress low{LostMemory::base - below};
        const AccessError expected{AccessReason::fault, Access::read, LostMemory::base, below};
        EXPECT_EQ(memory_.read<std::uint64_t>(low).error(), expected);
        EXPECT_EQ(memory_.write(low, ~std::uint64_t{0}).error(),
                  (AccessError{AccessReason::fault, Access::write, LostMemory::base, below}));
        EXPECT_TRUE(is_all(lost_.map().bytes(0).last(below), std::byte{0xff}));
        EXPECT_EQ(lost_.map().take_dirty(0), Numbers{page_size_bytes / 64 - 1});
        // From the lost page into the good region behind it: the first byte is refused.
        const GuestAddress high{LostMemory::page(4).value() - below};
        EXPECT_EQ(memory_.read<std::uint64_t>(high).error(),
                  (AccessError{AccessReason::fault, Access::read, high.value(), 0}));
        EXPECT_EQ(memory_.write(high, ~std::uint64_t{0}).error(),
                  (AccessError{AccessReason::fault, Access::write, high.value(), 0}));
        EXPECT_TRUE(is_all(lost_.map().bytes(2), std::byte{0}));
        EXPECT_TRUE(lost_.map().take_dirty(2).empty());
    }
}

INSTANTIATE_TEST_SUITE_P(, TypedAccessLostTest, testing::all_ways_to_lose());

}  // namespace
}  // namespace guestmem
