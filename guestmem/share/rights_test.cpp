// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/rights.hpp"

#include <gmock/gmock.h>

#include <string>

namespace guestmem::share {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Rule allow(std::string pattern, std::uint32_t line = 0) {
    return {.verdict = Verdict::allow, .pattern = std::move(pattern), .permissions = {}, .line = line};
}
Rule deny(std::string pattern, std::uint32_t line = 0) {
    return {.verdict = Verdict::deny, .pattern = std::move(pattern), .permissions = {}, .line = line};
}
constexpr Permissions nothing{
    .may_attach = false, .may_create = false, .may_notify = false, .is_read_only = false};

TEST(Rights, WithoutRulesEverythingIsAllowed) {
    const Rights rights;
    EXPECT_EQ(rights.decide("mailbox"), (Decision{.is_allowed = true, .permissions = {}, .rule = {}}));
    EXPECT_THAT(rights.describe(rights.decide("mailbox"), "f.toml"), HasSubstr("no rules"));
}

TEST(Rights, TheFirstRuleThatMatchesDecides) {
    const Rights rights{{deny("mail-old"), allow("mail*"), deny("*"), allow("x")}};
    EXPECT_EQ(rights.decide("mail-old").rule, 0U);
    EXPECT_FALSE(rights.decide("mail-old").is_allowed);
    EXPECT_EQ(rights.decide("mail-new").rule, 1U);
    EXPECT_TRUE(rights.decide("mail-new").is_allowed);
    EXPECT_EQ(rights.decide("x").rule, 2U);
    EXPECT_EQ(rights.decide("x").permissions, nothing);
}

TEST(Rights, AnAllowGivesWhatItSays) {
    Rule rule = allow("log*");
    rule.permissions = {.may_attach = true, .may_create = false, .may_notify = false, .is_read_only = true};
    const Rights rights{{rule}};
    EXPECT_EQ(rights.decide("log-1").permissions, rule.permissions);
}

TEST(Rights, WithAnAllowTheListEndsInDenyAll) {
    const Rights rights{{deny("a"), allow("b")}};
    const Decision decision = rights.decide("c");
    EXPECT_EQ(decision, (Decision{.is_allowed = false, .permissions = nothing, .rule = {}}));
    EXPECT_EQ(rights.describe(decision, "f.toml"), "the implicit 'deny *' at the end of the list");
}

TEST(Rights, WithOnlyDeniesTheListEndsInAllowAll) {
    const Rights rights{{deny("a"), deny("b*")}};
    const Decision decision = rights.decide("c");
    EXPECT_EQ(decision, (Decision{.is_allowed = true, .permissions = {}, .rule = {}}));
    EXPECT_EQ(rights.describe(decision, "f.toml"), "the implicit 'allow *' at the end of the list");
    EXPECT_FALSE(rights.decide("bb").is_allowed);
}

TEST(Rights, TheLineThatDecidedIsNamed) {
    const Rights rights{{allow("mail*", 7), deny("secret-*", 12), deny("a\tb\x1b*")}};
    EXPECT_EQ(rights.describe(rights.decide("mail"), "share.toml"), "allow 'mail*' (share.toml:7)");
    EXPECT_EQ(rights.describe(rights.decide("secret-1"), "share.toml"), "deny 'secret-*' (share.toml:12)");
    EXPECT_EQ(rights.describe(rights.decide("a\tb\x1b"), "share.toml"), "deny 'a?b?*' (rule 3)");
    EXPECT_THAT(rights.describe({.is_allowed = false, .permissions = {}, .rule = 99}, "share.toml"),
                HasSubstr("implicit"));
}

TEST(Rights, APatternThatIsObjectedToMatchesNothing) {
    const Rights rights{
        {deny("[a"), deny(""), deny("a/*"), deny(std::string(max_pattern_bytes + 1, '*')), allow("b")}};
    EXPECT_FALSE(rights.decide("[a").rule);
    EXPECT_FALSE(rights.decide("").rule);
    EXPECT_FALSE(rights.decide("a/b").rule);
    EXPECT_EQ(rights.decide("b").rule, 4U);
}

TEST(Rights, EveryKindOfPatternIsFoundWhereverItStands) {
    const Rights rights{{deny("literal"), deny("prefix*"), deny("*suffix"), deny("*middle*"), deny("[xy]?"),
                         deny("*a?b*"), deny("?"), deny("\\*"), allow("*")}};
    const auto rule = [&](std::string_view name) { return rights.decide(name).rule; };
    EXPECT_EQ(rule("literal"), 0U);
    EXPECT_EQ(rule("prefix"), 1U);
    EXPECT_EQ(rule("prefix-suffix"), 1U);
    EXPECT_EQ(rule("suffix"), 2U);
    EXPECT_EQ(rule("a-middle-b"), 3U);
    EXPECT_EQ(rule("x1"), 4U);
    EXPECT_EQ(rule("..a.b.."), 5U);
    EXPECT_EQ(rule("q"), 6U);
    EXPECT_EQ(rule("*"), 6U);
    EXPECT_EQ(rule("none of them"), 8U);
    EXPECT_THAT(rights.rules_that_match("prefix-middle-suffix"), ElementsAre(1U, 2U, 3U, 8U));
    EXPECT_THAT(rights.rules_that_match("*"), ElementsAre(6U, 7U, 8U));
}

TEST(Rights, ALiteralGivenTwiceIsDecidedByTheFirst) {
    const Rights rights{{allow("a"), deny("a")}};
    EXPECT_EQ(rights.decide("a").rule, 0U);
    EXPECT_THAT(rights.rules_that_match("a"), ElementsAre(0U, 1U));
}

TEST(Rights, CopiesOutliveWhatTheyWereCopiedFrom) {
    Rights copy;
    {
        const Rights rights{{deny("a")}};
        copy = rights;
    }
    EXPECT_FALSE(copy.decide("a").is_allowed);
    EXPECT_EQ(copy.rules().size(), 1U);
}

TEST(Rights, MaxRulesAreDecidedByTheLast) {
    std::vector<Rule> rules;
    for (std::size_t i = 0; i + 1 < max_rules; ++i) rules.push_back(deny("*" + std::to_string(i) + "-"));
    rules.push_back(allow("last"));
    const Rights rights{std::move(rules)};
    EXPECT_EQ(rights.decide("last").rule, max_rules - 1);
    EXPECT_EQ(rights.decide("x16000-").rule, 0U);  // "*0-" comes first
}

TEST(Rights, PatternProblemsAreSaid) {
    const auto problem = [](std::string_view pattern) {
        return find_pattern_problem(pattern).value_or("none");
    };
    EXPECT_EQ(problem("mail*"), "none");
    EXPECT_EQ(problem(std::string(max_pattern_bytes, 'a')), "none");
    EXPECT_THAT(problem(std::string(max_pattern_bytes + 1, 'a')), HasSubstr("128"));
    EXPECT_THAT(problem(""), HasSubstr("at least one"));
    EXPECT_THAT(problem("a/b"), HasSubstr("'/'"));
    EXPECT_THAT(problem("[a"), HasSubstr("without ']'"));
}

}  // namespace
}  // namespace guestmem::share
