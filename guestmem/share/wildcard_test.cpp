// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/wildcard.hpp"

#include <gmock/gmock.h>

#include <string>

#include "guestmem/share/config.hpp"
#include "guestmem/share/rights.hpp"

namespace guestmem::share {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string problem(std::string_view pattern) {
    const auto parsed = Wildcard::parse(pattern);
    return parsed ? "none" : parsed.error();
}

TEST(Wildcard, AStarIsAnyNumberOfCharactersAndNoneAmongThem) {
    for (const char* name : {"mail", "mailbox", "mail*"}) EXPECT_TRUE(matches("mail*", name)) << name;
    EXPECT_FALSE(matches("mail*", "mai"));
    EXPECT_FALSE(matches("mail*", "amail"));
    EXPECT_TRUE(matches("*", ""));
    EXPECT_TRUE(matches("**a**", "bab"));
    EXPECT_TRUE(matches("a*b*c", "a-b-b-c"));
    EXPECT_FALSE(matches("a*b*c", "a-c-b"));
}

TEST(Wildcard, AQuestionMarkIsOneCharacter) {
    EXPECT_TRUE(matches("a?c", "abc"));
    EXPECT_TRUE(matches("?", "/"));
    EXPECT_FALSE(matches("a?c", "ac"));
    EXPECT_FALSE(matches("?", ""));
}

TEST(Wildcard, ASetIsOneOfItsCharacters) {
    EXPECT_TRUE(matches("[a-cx]1", "b1"));
    EXPECT_TRUE(matches("[a-cx]1", "x1"));
    EXPECT_FALSE(matches("[a-cx]1", "d1"));
    EXPECT_FALSE(matches("[a-c]", ""));
    EXPECT_TRUE(matches("[!a-c]", "d"));
    EXPECT_FALSE(matches("[!a-c]", "a"));
    EXPECT_FALSE(matches("[!a-c]", ""));
}

TEST(Wildcard, BracketsHyphensAndQuotedCharactersStandForThemselvesInASet) {
    EXPECT_TRUE(matches("[]a]", "]"));
    EXPECT_TRUE(matches("[!]a]", "b"));
    EXPECT_FALSE(matches("[!]a]", "]"));
    EXPECT_TRUE(matches("[-a]", "-"));
    EXPECT_TRUE(matches("[a-]", "-"));
    EXPECT_FALSE(matches("[a-]", "b"));
    EXPECT_TRUE(matches("[\\]\\^]", "^"));
    EXPECT_TRUE(matches("[\\]\\^]", "]"));
    EXPECT_TRUE(matches("[a[]", "["));
}

TEST(Wildcard, ABackslashTakesTheMeaningOfTheNextCharacter) {
    EXPECT_TRUE(matches("a\\*", "a*"));
    EXPECT_FALSE(matches("a\\*", "ab"));
    EXPECT_TRUE(matches("\\[a]", "[a]"));
    EXPECT_TRUE(matches("\\\\", "\\"));
    EXPECT_TRUE(matches("\\a", "a"));
}

TEST(Wildcard, WhatCannotBeReadSaysWhyAndMatchesNothing) {
    EXPECT_THAT(problem("[abc"), HasSubstr("without ']'"));
    EXPECT_THAT(problem("["), HasSubstr("without ']'"));
    EXPECT_THAT(problem("[]"), HasSubstr("without ']'"));
    EXPECT_THAT(problem("[!]"), HasSubstr("without ']'"));
    EXPECT_THAT(problem("[a-"), HasSubstr("without ']'"));
    EXPECT_THAT(problem("[a-\\"), HasSubstr("without ']'"));
    EXPECT_THAT(problem("[\\"), HasSubstr("without ']'"));
    EXPECT_THAT(problem("[z-a]"), HasSubstr("lower character"));
    EXPECT_THAT(problem("[^a]"), HasSubstr("'!'"));
    EXPECT_THAT(problem("a\\"), HasSubstr("at the end"));
    EXPECT_FALSE(matches("[abc", "[abc"));
    EXPECT_FALSE(matches("a\\", "a\\"));
    EXPECT_EQ(problem("[a-b-c]]"), "none");
}

TEST(Wildcard, ManyStarsTakeNoMoreThanTheProductOfBothLengths) {
    // A matcher that tries every star again needs some 2^60 steps here.
    std::string pattern;
    for (int i = 0; i < 60; ++i) pattern += "*a";
    EXPECT_FALSE(matches(pattern + "*b", std::string(20'000, 'a')));
    EXPECT_TRUE(matches(pattern + "*", std::string(20'000, 'a')));
}

TEST(Wildcard, ThePiecesAreWhatEveryMatchContains) {
    const auto pieces = [](std::string_view pattern) {
        const auto wildcard = Wildcard::parse(pattern);
        return wildcard ? wildcard->prefix() + "|" + wildcard->middle() + "|" + wildcard->suffix() : "none";
    };
    EXPECT_EQ(pieces("abc*def*gh?ij"), "abc|def|ij");
    EXPECT_EQ(pieces("*a\\*b*"), "|a*b|");
    EXPECT_EQ(pieces("abc"), "abc||");
    EXPECT_EQ(pieces("[ab]c"), "||c");
    EXPECT_TRUE(Wildcard::parse("a\\*c")->is_literal());
    EXPECT_FALSE(Wildcard::parse("a[b]c")->is_literal());
}

TEST(Wildcard, OnePatternCoversAnotherWhenEachNameOfThatFits) {
    EXPECT_TRUE(covers("*", "mail*"));
    EXPECT_TRUE(covers("mail*", "mail"));
    EXPECT_TRUE(covers("mail*", "mail-[0-9]*"));
    EXPECT_TRUE(covers("*", "?*"));
    EXPECT_TRUE(covers("?*", "*"));  // no name is empty
    EXPECT_TRUE(covers("[a-z]*", "[b-d]?x"));
    EXPECT_TRUE(covers("*a*", "*ba*"));
    EXPECT_TRUE(covers("a*b", "a*?b"));
    EXPECT_TRUE(covers("?*?", "*??"));
    EXPECT_TRUE(covers("[ -.0-~]x", "?x"));  // all characters of names
    EXPECT_TRUE(covers("a[b]c", "abc"));

    EXPECT_FALSE(covers("mail*", "*"));
    EXPECT_FALSE(covers("*a", "*"));
    EXPECT_FALSE(covers("*a", "*b"));
    EXPECT_FALSE(covers("??*", "?*"));
    EXPECT_FALSE(covers("[a-y]*", "[b-z]*"));
    EXPECT_FALSE(covers("[0-9A-Za-z]x", "?x"));
    EXPECT_FALSE(covers("*ab*", "*a*b*"));
    EXPECT_FALSE(covers("abc", "ab?"));
}

TEST(Wildcard, OnlyNamesCountForCovering) {
    const std::string longest(max_name_bytes, '?');
    EXPECT_TRUE(covers(longest, longest + "*"));
    EXPECT_FALSE(covers(longest, "*"));
    EXPECT_TRUE(covers("x", longest + "?"));
    EXPECT_TRUE(covers("x", "a\tb"));
    EXPECT_TRUE(covers("x", "[/]"));
    EXPECT_FALSE(covers(longest + "?", "x"));
    EXPECT_TRUE(Wildcard::parse(longest)->can_match_name());
    EXPECT_FALSE(Wildcard::parse(longest + "?")->can_match_name());
    EXPECT_FALSE(Wildcard::parse("")->can_match_name());
    EXPECT_FALSE(Wildcard::parse("caf\xc3\xa9*")->can_match_name());
    EXPECT_TRUE(Wildcard::parse("*")->can_match_name());
}

TEST(Wildcard, PatternsWhoseAutomataHaveManyStatesAreToldApart) {
    // An "a" at each of many places before the last character: each set of places is a state.
    const std::string many = "*a" + std::string(14, '?') + "*[bc]" + std::string(12, '?');
    EXPECT_TRUE(covers(many, many));
    EXPECT_TRUE(covers(many, "x" + many));
    EXPECT_FALSE(covers(many, "*a" + std::string(13, '?') + "*[bc]" + std::string(12, '?')));
    EXPECT_FALSE(covers("*a" + std::string(29, '?'), "*"));
}

TEST(Wildcard, SamplesAreNamesThatItMatches) {
    for (const char* pattern : {"*", "mail*", "[!a-z]*x?", "a", "\\*[a-c]"}) {
        const auto wildcard = Wildcard::parse(pattern);
        ASSERT_TRUE(wildcard);
        const auto samples = wildcard->sample_names();
        EXPECT_FALSE(samples.empty()) << pattern;
        for (const std::string& sample : samples) {
            EXPECT_TRUE(wildcard->matches(sample)) << pattern << " " << sample;
            EXPECT_FALSE(find_name_problem(sample)) << pattern << " " << sample;
        }
    }
    EXPECT_THAT(Wildcard::parse("abc")->sample_names(), ElementsAre("abc"));
    EXPECT_THAT(Wildcard::parse("a/b")->sample_names(), ElementsAre());
}

}  // namespace
}  // namespace guestmem::share
