// SPDX-License-Identifier: Apache-2.0
#include "guestmem/base/endian.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace guestmem {
namespace {

template <std::size_t count>
std::array<std::byte, count> bytes_of(const std::array<unsigned, count>& values) {
    std::array<std::byte, count> bytes{};
    for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(values[i]);
    return bytes;
}

TEST(StoreLittle, PutsTheLeastByteFirst) {
    std::array<std::byte, 4> bytes{};

    store_little<std::uint32_t>(bytes, 0x01020304);

    EXPECT_EQ(bytes, bytes_of<4>({4, 3, 2, 1}));
}

TEST(LoadLittle, TakesTheFirstByteAsTheLeast) {
    const auto bytes = bytes_of<8>({0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff});
    EXPECT_EQ(load_little<std::int64_t>(bytes), -1);
    EXPECT_EQ(load_little<std::uint16_t>(bytes_of<2>({0x34, 0x12})), 0x1234);
    EXPECT_EQ(load_little<std::uint8_t>(bytes_of<1>({0x80})), 0x80);
}

TEST(LoadLittle, ReadsAnAddressThatIsNotAligned) {
    const auto bytes = bytes_of<5>({0, 0x78, 0x56, 0x34, 0x12});
    EXPECT_EQ(load_little<std::uint32_t>(std::span{bytes}.subspan<1>()), 0x12345678U);
}

template <typename T>
void expect_round_trips() {
    using Limits = std::numeric_limits<T>;
    for (const T value : {T{0}, T{1}, Limits::min(), Limits::max(), static_cast<T>(Limits::max() / 3)}) {
        std::array<std::byte, sizeof(T)> bytes{};
        store_little<T>(bytes, value);
        EXPECT_EQ(load_little<T>(bytes), value);
    }
}

TEST(StoreLittle, IsReadBackAsTheSameValue) {
    expect_round_trips<std::int8_t>();
    expect_round_trips<std::uint16_t>();
    expect_round_trips<std::int32_t>();
    expect_round_trips<std::uint64_t>();
    expect_round_trips<std::int64_t>();
}

TEST(SwapUnlessLittle, TwiceIsTheValueItself) {
    static_assert(swap_unless_little(swap_unless_little(std::uint32_t{0x01020304})) == 0x01020304);
    EXPECT_EQ(swap_unless_little(std::uint8_t{7}), 7);
}

}  // namespace
}  // namespace guestmem
