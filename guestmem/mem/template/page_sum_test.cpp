// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/template/page_sum.hpp"

#include <gtest/gtest.h>

#include <array>
#include <set>
#include <vector>

#include "guestmem/base/sizes.hpp"

namespace guestmem {
namespace {

using Page = std::array<std::byte, page_size_bytes>;

TEST(PageSum, OfZerosIsZeroAndOfNoOther) {
    Page page{};
    EXPECT_TRUE(is_zero_page(page));
    EXPECT_EQ(page_sum(page), 0U);
    for (const std::size_t at : {0U, 1U, 7U, 8U, 9U, 2048U, 4087U, 4088U, 4095U}) {
        page[at] = std::byte{1};
        EXPECT_FALSE(is_zero_page(page)) << at;
        EXPECT_NE(page_sum(page), 0U) << at;
        page[at] = std::byte{0};
    }
}

TEST(PageSum, OfAPageOfOneOtherWordIsNoPageOfZeros) {
    Page page;
    page.fill(std::byte{0x5a});
    EXPECT_FALSE(is_zero_page(page));
}

TEST(PageSum, DiffersForEachFlippedBit) {
    Page page{};
    page[100] = std::byte{7};
    std::set<std::uint64_t> sums{page_sum(page)};
    for (std::size_t bit = 0; bit < page_size_bytes * 8; ++bit) {
        page[bit / 8] ^= std::byte{1} << static_cast<int>(bit % 8);
        sums.insert(page_sum(page));
        page[bit / 8] ^= std::byte{1} << static_cast<int>(bit % 8);
    }
    EXPECT_EQ(sums.size(), page_size_bytes * 8 + 1);
}

TEST(PageSum, IsThatOfXxh3) {
    // XXH3_64bits() of nothing, as its authors publish it.
    EXPECT_EQ(bytes_sum({}), 0x2d06800538d394c2U);
}

TEST(SumOfSums, DependsOnPlaceAndSum) {
    const auto of = [](const std::vector<std::pair<std::uint64_t, std::uint64_t>>& pages) {
        SumOfSums sum;
        for (const auto& [page, value] : pages) sum.add(page, value);
        return sum.value();
    };
    EXPECT_EQ(of({{1, 2}, {3, 4}}), of({{1, 2}, {3, 4}}));
    EXPECT_NE(of({{1, 2}, {3, 4}}), of({{1, 2}, {4, 4}}));
    EXPECT_NE(of({{1, 2}, {3, 4}}), of({{1, 2}, {3, 5}}));
    EXPECT_NE(of({{1, 2}, {3, 4}}), of({{1, 2}}));
    EXPECT_EQ(of({}), bytes_sum({}));
}

}  // namespace
}  // namespace guestmem
