// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/keeper/keeper.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <set>
#include <string>

namespace guestmem::share {
namespace {

constexpr std::uint32_t highest = std::numeric_limits<std::uint32_t>::max();

TEST(KeptName, IsALetterAndTwoHexadecimalNumbers) {
    EXPECT_EQ(to_name({.kind = KeptKind::doorbell, .share = 3, .index = 31}), "d3.1f");
    EXPECT_EQ(to_name({}), "j0.0");
}

TEST(KeptName, OfTheHighestNumbersIsAsLongAsTheLimit) {
    const KeptKey key{.kind = KeptKind::bell, .share = highest, .index = highest};
    EXPECT_EQ(to_name(key).size(), max_kept_name_bytes);
    EXPECT_EQ(parse_kept_name(to_name(key)), key);
}

TEST(KeptName, OfEachKindIsAnotherAndLeadsBack) {
    std::set<std::string> names;
    for (int kind = 0; kind <= static_cast<int>(KeptKind::bell); ++kind) {
        const KeptKey key{.kind = static_cast<KeptKind>(kind), .share = 10, .index = 0xabc};
        EXPECT_EQ(parse_kept_name(to_name(key)), key) << to_name(key);
        names.insert(to_name(key));
    }
    EXPECT_EQ(names.size(), 8U);
}

TEST(KeptName, IsNothingElse) {
    for (const char* name :
         {"",      "d",     "d3",           "d.",           "d3.",          "d.1",         "x3.1",
          "D3.1",  "d3.1F", "d03.1",        "d3.01",        "d3.1.1",       "d3.-1",       "d+3.1",
          "d3 .1", "d3.1 ", "d100000000.0", "d0.100000000", "linux.socket", "mail.socket", "stored",
          "d3.1\n"})
        EXPECT_FALSE(parse_kept_name(name)) << name;
}

}  // namespace
}  // namespace guestmem::share
