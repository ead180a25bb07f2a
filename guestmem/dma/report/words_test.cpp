// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/report/words.hpp"

#include <gtest/gtest.h>

namespace guestmem::dma {
namespace {

TEST(WordsTest, WhatIsNotPrintableBecomesAQuestionMark) {
    EXPECT_EQ(clean("a\x1b[31m\n\x7f\xc3\xa4~ "), "a?[31m????~ ");
}

TEST(WordsTest, PageSizesAreShownUpToFour) {
    EXPECT_EQ(page_sizes_text(0), "");
    EXPECT_EQ(page_sizes_text(4096), "4K");
    EXPECT_EQ(page_sizes_text(4096 | 2 << 20 | 1 << 30), "4K, 2M, 1G");
    EXPECT_EQ(page_sizes_text(0xffff'ffff'ffff'f000), "4K, 8K, 16K, 32K and 48 larger ones");
}

TEST(WordsTest, AbilitiesThatAreNotKnownAreNotShown) {
    EXPECT_EQ(abilities_text({}), "");
    EXPECT_EQ(abilities_text({.input_bits = 48, .has_interrupt_remapping = false, .can_forbid_reads = true}),
              "48-bit addresses; does not remap interrupts");
}

TEST(WordsTest, GroupsAreNumbersOrNone) {
    EXPECT_EQ(groups_text({}), "no group");
    EXPECT_EQ(groups_text({.kernel_groups = {6}}), "group 6");
    EXPECT_EQ(groups_text({.kernel_groups = {6, 7}}), "groups 6, 7");
}

TEST(WordsTest, CodeWordsHaveHyphens) { EXPECT_EQ(code_word("shared identity_x"), "shared-identity-x"); }

}  // namespace
}  // namespace guestmem::dma
