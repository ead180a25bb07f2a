// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/random.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <vector>

#include "guestmem/sys/testing/fault_loop.hpp"

namespace guestmem {
namespace {

TEST(Random, FillsAllBytesAndNeverTheSame) {
    // More than the kernel gives without a signal interrupting it.
    std::vector<std::byte> one(100'000);
    std::vector<std::byte> other(one.size());
    ASSERT_TRUE(fill_randomly(one));
    ASSERT_TRUE(fill_randomly(other));
    EXPECT_NE(one, other);
    EXPECT_LT(std::ranges::count(one, std::byte{0}), 1000) << "about 390 of them";
    EXPECT_TRUE(fill_randomly({}));
}

TEST(Random, EachFailingCallIsAnError) {
    std::array<std::byte, 16> bytes{};
    EXPECT_EQ(testing::for_each_fault([&] { return fill_randomly(bytes); }), 1U);
}

}  // namespace
}  // namespace guestmem
