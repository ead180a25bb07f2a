// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/characters.hpp"

#include <gtest/gtest.h>

#include <string>

namespace guestmem::vmm {
namespace {

std::size_t length_of(std::string_view text) { return first_character(text).count_bytes; }
bool is_utf8(std::string_view text) { return first_character(text).is_utf8; }
bool is_text(std::string_view text) { return first_character(text).is_text; }

TEST(Characters, HaveOneToFourBytes) {
    EXPECT_EQ(length_of("ab"), 1U);
    EXPECT_EQ(length_of("\xc3\xa4x"), 2U);
    EXPECT_EQ(length_of("\xe2\x82\xacx"), 3U);
    EXPECT_EQ(length_of("\xf0\x9f\x98\x80x"), 4U);
}

TEST(Characters, WhatIsNoUtf8IsOneByte) {
    for (const std::string_view bad :
         {"\x80", "\xc3", "\xc3(", "\xc0\x80", "\xc1\xbf", "\xe0\x80\x80", "\xe2\x82", "\xed\xa0\x80",
          "\xf0\x80\x80\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff"}) {
        EXPECT_FALSE(is_utf8(bad)) << bad.size();
        EXPECT_FALSE(is_text(bad));
        EXPECT_EQ(length_of(bad), 1U);
    }
}

TEST(Characters, TheEdgesOfUtf8AreCharacters) {
    for (const std::string_view good :
         {"\xc2\xa0", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80", "\xef\xbf\xbf",
          "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"})
        EXPECT_TRUE(is_text(good)) << good;
}

TEST(Characters, ControlCharactersAreNoTextButForTabAndLineEnds) {
    for (const std::string_view good : {"\t", "\n", "\r", " ", "~"}) EXPECT_TRUE(is_text(good));
    for (const std::string_view bad : {"\x01", "\x1b", "\x7f", "\xc2\x80", "\xc2\x9f"}) {
        EXPECT_TRUE(is_utf8(bad));
        EXPECT_FALSE(is_text(bad));
    }
    EXPECT_FALSE(is_text(std::string_view{"\0", 1}));
}

}  // namespace
}  // namespace guestmem::vmm
