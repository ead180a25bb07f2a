// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/rights_lint.hpp"

#include <gmock/gmock.h>

#include <algorithm>
#include <string>

namespace guestmem::share {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr std::uint32_t service_user = 500;
constexpr std::uint32_t other_user = 600;

Rule allow(std::string pattern, std::uint32_t line) {
    return {.verdict = Verdict::allow, .pattern = std::move(pattern), .permissions = {}, .line = line};
}
Rule deny(std::string pattern, std::uint32_t line) {
    return {.verdict = Verdict::deny, .pattern = std::move(pattern), .permissions = {}, .line = line};
}
Rule read_only(std::string pattern, std::uint32_t line) {
    Rule rule = allow(std::move(pattern), line);
    rule.permissions.is_read_only = true;
    return rule;
}

/// One share 'mail' on line 1, and one VM on line 10 that runs as a user of its own.
class Lint : public ::testing::Test {
protected:
    Lint() {
        config_.file = "f.toml";
        config_.shares.push_back({.name = "mail", .size_bytes = 4096, .line = 1});
        config_.vms.push_back({.name = "a", .match = {.user = other_user}, .line = 10});
    }
    VmConfig& vm() { return config_.vms.front(); }
    void add_door(const std::string& name) {
        config_.doors.push_back({.share = "mail",
                                 .vm = name,
                                 .slots = {0},
                                 .socket = {.path = "/run/d", .owner = other_user},
                                 .line = 20});
    }
    [[nodiscard]] std::vector<std::string> found(LintKind kind) const {
        std::vector<std::string> texts;
        for (const LintFinding& finding : lint_rights(config_, service_user))
            if (finding.kind == kind)
                texts.push_back(std::to_string(finding.line) + ": " + finding.what + ": " + finding.why);
        return texts;
    }
    [[nodiscard]] AccessAnswer explain(const std::string& share, bool is_create = false) const {
        auto answer = explain_access(
            config_, {.vm = "a", .share = share, .is_create = is_create, .service_user = service_user});
        EXPECT_TRUE(answer);
        return answer ? *answer : AccessAnswer{};
    }

    ServiceConfig config_;
};

TEST_F(Lint, RulesThatSayWhatTheyMeanAreNoFindings) {
    vm().rules = {deny("mail-old*", 11), allow("mail*", 12), allow("*.log", 13)};
    EXPECT_THAT(lint_rights(config_, service_user), IsEmpty());
}

TEST_F(Lint, ARuleBehindOneThatCoversItIsNamedWithTheCoveringLine) {
    vm().rules = {allow("mail*", 11), deny("secret", 12), deny("mail-[0-9]*", 13), allow("secret", 14),
                  deny("*mail", 15)};
    EXPECT_THAT(
        found(LintKind::dead_rule),
        ElementsAre(AllOf(HasSubstr("13: "), HasSubstr("deny 'mail-[0-9]*' (f.toml:13) can never match"),
                          HasSubstr("allow 'mail*' (f.toml:11)")),
                    AllOf(HasSubstr("14: "), HasSubstr("deny 'secret' (f.toml:12)"))));
}

TEST_F(Lint, TheFirstRuleThatCoversIsTheOneNamed) {
    vm().rules = {allow("a*", 11), deny("*", 12), deny("*x", 13), allow("ab", 14)};
    EXPECT_THAT(found(LintKind::dead_rule),
                ElementsAre(HasSubstr("deny '*' (f.toml:12)"), HasSubstr("allow 'a*' (f.toml:11)")));
}

TEST_F(Lint, ARuleThatOnlyFitsIllegalNamesIsFound) {
    vm().rules = {allow("mail", 11), deny(std::string(32, '?') + "*", 12), deny("caf\xc3\xa9", 13),
                  deny("a/b", 14), deny("[a", 15)};
    const auto texts = found(LintKind::dead_rule);
    ASSERT_EQ(texts.size(), 4U);
    EXPECT_THAT(texts[0], HasSubstr("no such name fits"));
    EXPECT_THAT(texts[1], HasSubstr("no such name fits"));
    EXPECT_THAT(texts[2], HasSubstr("'/'"));
    EXPECT_THAT(texts[3], HasSubstr("without ']'"));
}

TEST_F(Lint, AVmThatReachesEverythingIsFoundWithTheLineThatLetsIt) {
    EXPECT_THAT(found(LintKind::reaches_everything),
                ElementsAre(HasSubstr("10: vm 'a' may reach every share: ")));
    vm().rules = {deny("x", 11), allow("?*", 12)};
    EXPECT_THAT(found(LintKind::reaches_everything),
                ElementsAre(HasSubstr("12: vm 'a' may reach every share but")));
    vm().rules = {deny("x", 11)};
    EXPECT_THAT(found(LintKind::reaches_everything), ElementsAre(HasSubstr("only deny")));
    vm().rules = {allow("x", 11), deny("*", 12), allow("*", 13)};
    EXPECT_THAT(found(LintKind::reaches_everything), IsEmpty());
    vm().rules = {deny("x", 11), deny("*", 12)};
    EXPECT_THAT(found(LintKind::reaches_everything), IsEmpty());
}

TEST_F(Lint, AVmWithDoorsAloneReachesNothingElse) {
    vm().match = {};
    add_door("a");
    EXPECT_THAT(lint_rights(config_, service_user), IsEmpty());
    vm().socket = ListenOptions{.path = "/run/a", .owner = other_user};
    EXPECT_THAT(found(LintKind::reaches_everything), Not(IsEmpty()));
}

TEST_F(Lint, AVmThatRunsAsTheHostIsFound) {
    vm().rules = {allow("mail", 11)};
    for (const std::uint32_t user : {0U, service_user}) {
        vm().match.user = user;
        EXPECT_THAT(found(LintKind::is_host), ElementsAre(HasSubstr("10: no rule holds for vm 'a'"))) << user;
    }
    vm().match.user = other_user;
    EXPECT_THAT(found(LintKind::is_host), IsEmpty());
    config_.control.operators = {other_user};
    EXPECT_THAT(found(LintKind::is_host), ElementsAre(HasSubstr("an operator")));
}

TEST_F(Lint, AShareThatNobodyReachesIsFound) {
    vm().rules = {allow("other", 11)};
    EXPECT_THAT(found(LintKind::unreachable_share),
                ElementsAre(HasSubstr("1: no VM can reach share 'mail'")));
    add_door("a");  // which its own rules deny
    EXPECT_THAT(found(LintKind::unreachable_share), Not(IsEmpty()));
    add_door("");
    EXPECT_THAT(found(LintKind::unreachable_share), IsEmpty());
    config_.doors.clear();
    vm().rules = {allow("mail", 11)};
    EXPECT_THAT(found(LintKind::unreachable_share), IsEmpty());
    vm().rules[0].permissions.may_attach = false;
    EXPECT_THAT(found(LintKind::unreachable_share), Not(IsEmpty()));
    vm() = {.name = "a", .rules = {allow("mail", 11)}, .line = 10};  // no way to ask
    EXPECT_THAT(found(LintKind::unreachable_share), Not(IsEmpty()));
}

TEST_F(Lint, ADoorThatTheRulesDenyOrGiveReadOnlyIsFound) {
    add_door("a");
    vm().rules = {allow("other", 11)};
    EXPECT_THAT(found(LintKind::useless_door),
                ElementsAre(AllOf(HasSubstr("20: "), HasSubstr("refuses everybody"), HasSubstr("implicit"))));
    vm().rules = {read_only("mail", 11)};
    EXPECT_THAT(found(LintKind::useless_door),
                ElementsAre(AllOf(HasSubstr("20: QEMU cannot use"), HasSubstr("allow 'mail' (f.toml:11)"))));
    vm().rules = {allow("mail", 11)};
    EXPECT_THAT(found(LintKind::useless_door), IsEmpty());
}

TEST_F(Lint, ReadOnlyRightsOfTheServicesUserAndOfRootAreFound) {
    vm().rules = {allow("x", 11), read_only("mail", 12)};
    EXPECT_THAT(found(LintKind::open_read_only), IsEmpty());
    vm().match.user = service_user;
    EXPECT_THAT(found(LintKind::open_read_only),
                ElementsAre(AllOf(HasSubstr("12: "), HasSubstr("user 500"))));
    vm().match.user = 0;
    EXPECT_THAT(found(LintKind::open_read_only), ElementsAre(HasSubstr("root")));
    vm().rules = {allow("x", 11)};
    EXPECT_THAT(found(LintKind::open_read_only), IsEmpty());
}

TEST_F(Lint, WithoutAUserTheSocketsTellWhoAVmIs) {
    vm().match = {};
    vm().socket = ListenOptions{.path = "/run/a", .owner = other_user};
    EXPECT_THAT(doubt_read_only(config_, vm(), service_user).broken, IsEmpty());
    vm().socket->owner.reset();  // the service's own file
    EXPECT_THAT(doubt_read_only(config_, vm(), service_user).broken, ElementsAre(HasSubstr("user 500")));
    vm().socket = ListenOptions{.path = "/run/a", .owner = other_user, .group = {}, .mode = 0660};
    EXPECT_THAT(doubt_read_only(config_, vm(), service_user).unknown, ElementsAre(HasSubstr("group")));
    vm().socket->mode = 0666;
    EXPECT_THAT(doubt_read_only(config_, vm(), service_user).unknown, ElementsAre(HasSubstr("everybody")));
    vm().socket.reset();
    vm().match.cgroup = "/a";
    EXPECT_THAT(doubt_read_only(config_, vm(), service_user).unknown,
                ElementsAre(HasSubstr("names no user")));
}

TEST_F(Lint, FindingsComeInTheOrderOfTheirLines) {
    vm().rules = {allow("*", 11), deny("x", 12)};
    config_.vms.push_back({.name = "b", .match = {.user = 0}, .rules = {}, .line = 3});
    const auto findings = lint_rights(config_, service_user);
    EXPECT_GE(findings.size(), 4U);
    EXPECT_TRUE(std::ranges::is_sorted(findings, {}, &LintFinding::line));
}

TEST_F(Lint, ManyRulesAreReadInTime) {
    vm().rules.clear();
    for (std::uint32_t i = 0; i < max_rules; ++i)
        vm().rules.push_back(
            allow((i % 2 == 0 ? "*-" : "p") + std::to_string(i) + (i % 2 == 0 ? "" : "?*"), i + 1));
    vm().rules.back() = allow("p1x-2", max_rules);
    EXPECT_THAT(found(LintKind::dead_rule), Not(IsEmpty()));
}

TEST_F(Lint, AnAnswerNamesTheRuleAndWhatItAllows) {
    vm().rules = {allow("mail", 11), deny("*", 12)};
    const AccessAnswer answer = explain("mail");
    EXPECT_TRUE(answer.is_allowed);
    EXPECT_EQ(answer.rule, "allow 'mail' (f.toml:11)");
    EXPECT_EQ(answer.line, 11U);
    EXPECT_TRUE(answer.is_in_file);
    const AccessAnswer other = explain("other");
    EXPECT_FALSE(other.is_allowed);
    EXPECT_THAT(other.refusals, ElementsAre("deny '*' (f.toml:12)"));
    EXPECT_THAT(other.remarks, ElementsAre(HasSubstr("no such share")));
}

TEST_F(Lint, CreatingNeedsItsOwnRight) {
    vm().rules = {allow("mail-*", 11)};
    EXPECT_TRUE(explain("mail-1", true).is_allowed);
    vm().rules[0].permissions.may_create = false;
    EXPECT_TRUE(explain("mail-1").is_allowed);
    EXPECT_FALSE(explain("mail-1", true).is_allowed);
    EXPECT_THAT(explain("mail-1", true).refusals, ElementsAre(HasSubstr("does not let it create")));
    vm().rules[0].permissions = {
        .may_attach = false, .may_create = true, .may_notify = true, .is_read_only = false};
    EXPECT_FALSE(explain("mail-1", true).is_allowed);
}

TEST_F(Lint, AVmWithoutAWayIsRefusedWhateverItsRules) {
    vm().match = {};
    EXPECT_THAT(explain("mail").refusals, ElementsAre(HasSubstr("no door")));
    add_door("a");
    EXPECT_TRUE(explain("mail").is_allowed);
    EXPECT_EQ(explain("mail").doors.size(), 1U);
    EXPECT_FALSE(explain("mail", true).is_allowed);
}

TEST_F(Lint, ReadOnlyIsAnsweredWithWhatItMeansForQemuAndForWhomItDoesNotHold) {
    vm().rules = {read_only("mail", 11)};
    EXPECT_THAT(explain("mail").remarks, ElementsAre(HasSubstr("ivshmem-doorbell")));
    vm().match.user = service_user;
    EXPECT_THAT(
        explain("mail").remarks,
        ElementsAre(HasSubstr("does not hold"), HasSubstr("ivshmem-doorbell"), HasSubstr("every right")));
}

TEST_F(Lint, AnUnknownVmOrAnImpossibleNameIsAnError) {
    const auto unknown = explain_access(config_, {.vm = "A", .share = "mail"});
    ASSERT_FALSE(unknown);
    EXPECT_EQ(unknown.error().code(), Errc::not_found);
    EXPECT_THAT(unknown.error().message(), HasSubstr("did you mean 'a'"));
    const auto impossible = explain_access(config_, {.vm = "a", .share = "a/b"});
    ASSERT_FALSE(impossible);
    EXPECT_EQ(impossible.error().code(), Errc::invalid_argument);
}

}  // namespace
}  // namespace guestmem::share
