// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// Which names a principal may reach, and what it may do there: an ordered list of allow and deny rules.
///
/// Concepts: a pattern is a shell wildcard over the whole name: `*`, `?`, `[a-z]`, `[!a-z]`, `\` before a character
/// that means itself (wildcard.hpp has all of it). The list is read from its top, the first rule whose pattern
/// matches decides. What no rule matches meets the implicit end, as QNX's `allow` and `deny` have it: with any allow
/// in the list it is `deny *`, with only denies it is `allow *`, and without any rule everything is allowed.
/// Contract: the order in the vector is the order of the list. decide() never fails; a pattern that
/// find_pattern_problem() objects to matches nothing.
/// Limits: max_pattern_bytes, max_rules.
/// Threads: any; a Rights does not change once made. Copies share what they know.
/// Cost: decide() asks a table for the name itself, and tables for its beginnings, ends and short pieces; it matches
/// the patterns found there, and those without any literal character, up to the first that fits. Each pattern stands
/// under the piece of it that the fewest others have. rights_bench.cpp has the numbers.
/// Known holes: patterns of sets and `?` alone are all looked at, and so are those that have all their pieces in
/// common: 10,000 of them take as long as a scan, 0.1 to 1 ms.

namespace guestmem::share {

inline constexpr std::size_t max_pattern_bytes = 128;
inline constexpr std::size_t max_rules = 16'384;

/// What an allowed name may be used for.
struct Permissions {
    bool may_attach = true;
    bool may_create = true;
    bool may_notify = true;
    bool is_read_only = false;
    bool operator==(const Permissions&) const = default;
};

enum class Verdict : std::uint8_t { allow, deny };

struct Rule {
    Verdict verdict = Verdict::allow;
    std::string pattern;
    Permissions permissions = {};  ///< of an allow
    std::uint32_t line = 0;        ///< where it stands in its file; 0: nowhere
};

struct Decision {
    bool is_allowed = true;
    Permissions permissions = {};     ///< all false where it is not allowed
    std::optional<std::size_t> rule;  ///< the one that decided; nothing: the implicit end

    bool operator==(const Decision&) const = default;
};

class Rights {
public:
    /// No rules: everything is allowed.
    Rights();
    explicit Rights(std::vector<Rule> rules);

    [[nodiscard]] Decision decide(std::string_view name) const;
    [[nodiscard]] const std::vector<Rule>& rules() const;
    /// The places of all rules whose pattern matches, ascending: the first decides.
    [[nodiscard]] std::vector<std::size_t> rules_that_match(std::string_view name) const;
    /// "deny 'secret-*' (share.toml:12)", "the implicit 'deny *' at the end of the list": which line decided. A rule
    /// that stands nowhere is counted instead: "deny 'secret-*' (rule 2)".
    [[nodiscard]] std::string describe(const Decision& decision, std::string_view file) const;

private:
    struct Index;
    std::shared_ptr<const Index> index_;
};

/// Whether one pattern matches the whole name. Time linear in their product at worst.
[[nodiscard]] bool matches(std::string_view pattern, std::string_view name);
/// What is wrong with a pattern ("'[' without ']'", empty, too long, a '/'), or nothing.
[[nodiscard]] std::optional<std::string> find_pattern_problem(std::string_view pattern);
/// Whether every name that `inner` matches is matched by `outer`, too: names as find_name_problem() allows them.
/// Exact, but for patterns whose product needs more than max_cover_states of wildcard.hpp: those are said not to.
[[nodiscard]] bool covers(std::string_view outer, std::string_view inner);

}  // namespace guestmem::share
