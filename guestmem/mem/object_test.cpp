// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/object.hpp"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

namespace guestmem {
namespace {

struct Descriptor {
    Le64 address;
    Le32 size_bytes;
    Le16 flags;
    Le16 next;
};
struct Padded {
    std::uint8_t kind;
    std::uint32_t value;
};
struct TailPadded {
    std::uint32_t value;
    std::uint8_t kind;
};
struct WithConstructor {
    WithConstructor() : value(1) {}
    std::uint32_t value;  // NOLINT(modernize-use-default-member-init): its subject
};
struct WithCopy {
    WithCopy() = default;
    // NOLINTNEXTLINE(modernize-use-equals-default): its subject
    WithCopy(const WithCopy& other) : value(other.value) {}
    WithCopy& operator=(const WithCopy&) = default;
    ~WithCopy() = default;
    std::uint32_t value;
};
struct WithFloat {
    float x;
    float y;
};
struct Blessed {
    float x;
    float y;
};

}  // namespace

template <>
inline constexpr bool is_guest_object<Blessed> = true;

namespace {

// What any bytes make a valid value of.
static_assert(GuestObject<std::uint8_t> && GuestObject<std::int64_t> && GuestObject<char>);
static_assert(GuestObject<std::byte> && GuestObject<std::array<std::uint16_t, 6>>);
static_assert(GuestObject<float> && GuestObject<double>);
static_assert(GuestObject<Descriptor> && sizeof(Descriptor) == 16);
static_assert(GuestObject<Blessed> && !GuestObject<WithFloat>);

// What they do not, or what would show the guest more than its value.
static_assert(!GuestObject<bool>);
static_assert(!GuestObject<int*> && !GuestObject<void (*)()> && !GuestObject<int Descriptor::*>);
static_assert(!GuestObject<std::nullptr_t>);
static_assert(!GuestObject<Padded> && !GuestObject<TailPadded>);
static_assert(!GuestObject<WithConstructor> && !GuestObject<WithCopy> && !GuestObject<std::string>);
static_assert(!GuestObject<const std::uint32_t> && !GuestObject<std::uint32_t&>);
static_assert(!GuestObject<std::uint32_t[4]> && !GuestObject<void>);
// On x86-64 an 80-bit number in 16 bytes: six of them are whatever was there.
static_assert(!GuestObject<long double>);

static_assert(GuestInteger<std::int8_t> && GuestInteger<std::uint64_t> && GuestInteger<char>);
static_assert(!GuestInteger<bool> && !GuestInteger<float> && !GuestInteger<Descriptor>);
#if defined(__SIZEOF_INT128__)
__extension__ using Wide = unsigned __int128;
static_assert(!GuestInteger<Wide>);
#endif

static_assert(has_word_size<std::int8_t> && has_word_size<double> && has_word_size<Le32>);
static_assert(!has_word_size<Descriptor> && !has_word_size<std::array<std::uint8_t, 3>>);
static_assert(std::is_same_v<WordOf<float>, std::uint32_t> && std::is_same_v<WordOf<char>, std::uint8_t>);

// Fields of structs that a guest shares: no alignment, no implicit conversion, no number without an order.
static_assert(sizeof(Le16) == 2 && sizeof(Be32) == 4 && sizeof(Le64) == 8);
static_assert(alignof(Le64) == 1 && alignof(Be16) == 1);
static_assert(!std::is_convertible_v<std::uint32_t, Le32> && !std::is_convertible_v<Le32, std::uint32_t>);
static_assert(!std::is_constructible_v<Le32, Be32>);
static_assert(std::is_trivially_default_constructible_v<Le32>);

template <typename Field>
auto bytes_of(Field field) {
    return std::bit_cast<std::array<std::uint8_t, sizeof(Field)>>(field);
}

TEST(EndianInteger, LiesInMemoryInTheOrderOfItsName) {
    EXPECT_EQ(bytes_of(Le16{0x0102}), (std::array<std::uint8_t, 2>{2, 1}));
    EXPECT_EQ(bytes_of(Be16{0x0102}), (std::array<std::uint8_t, 2>{1, 2}));
    EXPECT_EQ(bytes_of(Le32{0x01020304}), (std::array<std::uint8_t, 4>{4, 3, 2, 1}));
    EXPECT_EQ(bytes_of(Be32{0x01020304}), (std::array<std::uint8_t, 4>{1, 2, 3, 4}));
    EXPECT_EQ(bytes_of(Le64{0x0102030405060708}), (std::array<std::uint8_t, 8>{8, 7, 6, 5, 4, 3, 2, 1}));
    EXPECT_EQ(bytes_of(Be64{0x0102030405060708}), (std::array<std::uint8_t, 8>{1, 2, 3, 4, 5, 6, 7, 8}));
    EXPECT_EQ(bytes_of(LittleEndian<std::uint8_t>{7}), bytes_of(BigEndian<std::uint8_t>{7}));
}

template <typename Field, typename Number>
void expect_round_trips(std::initializer_list<Number> numbers) {
    for (const Number number : numbers) {
        EXPECT_EQ(Field{number}.value(), number);
        EXPECT_EQ(Field{number}, Field{number});
        EXPECT_NE(Field{number}, Field{static_cast<Number>(number ^ 1)});
    }
}

TEST(EndianInteger, GivesBackWhatItWasMadeOf) {
    expect_round_trips<Le16, std::uint16_t>({0, 1, 0x80, 0x8000, 0xffff});
    expect_round_trips<Be16, std::uint16_t>({0, 1, 0x80, 0x8000, 0xffff});
    expect_round_trips<Le32, std::uint32_t>({0, 1, 0x80000000, 0x12345678});
    expect_round_trips<Be32, std::uint32_t>({0, 1, 0x80000000, 0x12345678});
    expect_round_trips<Le64, std::uint64_t>({0, 1, std::numeric_limits<std::uint64_t>::max(), 1ULL << 63});
    expect_round_trips<Be64, std::uint64_t>({0, 1, std::numeric_limits<std::uint64_t>::max(), 1ULL << 63});
    static_assert(Be32{0x01020304}.value() == 0x01020304);
}

TEST(EndianInteger, StandsInAStructWithoutPadding) {
    const Descriptor descriptor{Le64{0x1122334455667788}, Le32{0x99aabbcc}, Le16{0x0102}, Le16{0x0304}};
    const auto bytes = bytes_of(descriptor);
    EXPECT_EQ(bytes[0], 0x88);
    EXPECT_EQ(bytes[8], 0xcc);
    EXPECT_EQ(bytes[12], 2);
    EXPECT_EQ(bytes[14], 4);
    EXPECT_EQ(std::bit_cast<Descriptor>(bytes).next.value(), 0x0304);
}

}  // namespace
}  // namespace guestmem
