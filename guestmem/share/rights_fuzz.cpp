// SPDX-License-Identifier: Apache-2.0
/// Fuzzes rights.hpp: any rules against any names, and covers() of any two patterns.
///
/// Input: lines. A line that begins with '+' is an allow, one with '-' a deny, of the pattern that follows; every other
/// line is a name. A letter of "acnr" between the sign and a ':' takes or gives a right ("+ar:mail*").
/// Asserts: decide() and rules_that_match() agree with a scan of all rules by a matcher that knows nothing of theirs
/// (it fills a table of all prefixes, character by character); a pattern that is objected to matches nothing; when
/// covers() says yes, no name that the inner pattern fits misses the outer one, among the names of the input, the inner
/// one's samples, and pieces of both patterns.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/check.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/share/rights.hpp"
#include "guestmem/share/wildcard.hpp"

namespace guestmem::share {
namespace {

constexpr std::size_t max_input_rules = 64;
constexpr std::size_t max_input_names = 32;
constexpr std::size_t max_input_name_bytes = 80;

/// Whether the set at `at`, behind its '[', has the character; moves `at` behind its ']'. Nothing when it is broken.
std::optional<bool> naive_set(std::string_view pattern, std::size_t& at, unsigned char c) {
    bool is_inverse = false;
    if (at < pattern.size() && pattern[at] == '!') {
        is_inverse = true;
        ++at;
    }
    if (at < pattern.size() && pattern[at] == '^') return std::nullopt;
    const std::size_t first = at;
    bool has = false;
    const auto take = [&]() -> std::optional<unsigned char> {
        if (at < pattern.size() && pattern[at] == '\\') ++at;
        if (at == pattern.size()) return std::nullopt;
        return static_cast<unsigned char>(pattern[at++]);
    };
    while (at < pattern.size()) {
        if (pattern[at] == ']' && at != first) {
            ++at;
            return has != is_inverse;
        }
        const auto low = take();
        if (!low) return std::nullopt;
        auto high = low;
        if (pattern.substr(at).starts_with('-') && at + 1 < pattern.size() && pattern[at + 1] != ']') {
            ++at;
            high = take();
            if (!high || *high < *low) return std::nullopt;
        }
        has = has || (*low <= c && c <= *high);
    }
    return std::nullopt;
}

/// fits[i]: whether the pattern so far fits the first i characters of the name. Nothing when it is broken.
std::optional<bool> naive_match(std::string_view pattern, std::string_view name) {
    std::vector<bool> fits(name.size() + 1, false);
    fits[0] = true;
    for (std::size_t at = 0; at < pattern.size();) {
        const char c = pattern[at++];
        std::vector<bool> next(name.size() + 1, false);
        if (c == '*') {
            for (std::size_t i = 0; i <= name.size(); ++i) next[i] = fits[i] || (i > 0 && next[i - 1]);
            fits = next;
            continue;
        }
        if (c == '\\' && at == pattern.size()) return std::nullopt;
        const char literal = c == '\\' ? pattern[at++] : c;
        std::size_t behind = at;
        // The set is read even when the name is empty: it may be broken.
        if (c == '[' && !naive_set(pattern, behind, 0)) return std::nullopt;
        for (std::size_t i = 0; i < name.size(); ++i) {
            std::size_t start = at;
            const auto byte = static_cast<unsigned char>(name[i]);
            const bool is_taken = c == '?'   ? true
                                  : c == '[' ? naive_set(pattern, start, byte).value_or(false)
                                             : name[i] == literal;
            next[i + 1] = fits[i] && is_taken;
        }
        at = behind;
        fits = next;
    }
    return fits[name.size()];
}

bool is_usable(std::string_view pattern) {
    return !pattern.empty() && pattern.size() <= max_pattern_bytes &&
           pattern.find('/') == std::string_view::npos;
}

struct Input {
    std::vector<Rule> rules;
    std::vector<std::string> names;
};

Rule read_rule(std::string_view line, std::uint32_t number) {
    Rule rule{.verdict = line.front() == '+' ? Verdict::allow : Verdict::deny,
              .pattern = {},
              .permissions = {},
              .line = number};
    line.remove_prefix(1);
    const std::size_t colon = line.find(':');
    if (colon <= 4) {
        for (const char c : line.substr(0, colon)) {
            if (c == 'a') rule.permissions.may_attach = false;
            if (c == 'c') rule.permissions.may_create = false;
            if (c == 'n') rule.permissions.may_notify = false;
            if (c == 'r') rule.permissions.is_read_only = true;
        }
        line.remove_prefix(colon + 1);
    }
    rule.pattern = line;
    return rule;
}

Input read_input(std::string_view text) {
    Input input;
    std::uint32_t number = 0;
    while (!text.empty()) {
        const std::string_view line = text.substr(0, text.find('\n'));
        text.remove_prefix(std::min(text.size(), line.size() + 1));
        ++number;
        if (line.starts_with('+') || line.starts_with('-')) {
            if (input.rules.size() < max_input_rules) input.rules.push_back(read_rule(line, number));
        } else if (input.names.size() < max_input_names) {
            input.names.emplace_back(line.substr(0, max_input_name_bytes));
        }
    }
    return input;
}

void check_decisions(const Input& input, const std::vector<std::string>& names) {
    const Rights rights{input.rules};
    const bool has_allow =
        std::ranges::any_of(input.rules, [](const Rule& rule) { return rule.verdict == Verdict::allow; });
    for (const std::string& name : names) {
        std::vector<std::size_t> expected;
        for (std::size_t i = 0; i < input.rules.size(); ++i) {
            const std::string& pattern = input.rules[i].pattern;
            if (is_usable(pattern) && naive_match(pattern, name).value_or(false)) expected.push_back(i);
        }
        GM_CHECK(rights.rules_that_match(name) == expected);
        const Decision decision = rights.decide(name);
        GM_CHECK(!rights.describe(decision, "fuzz.toml").empty());
        if (expected.empty()) {
            GM_CHECK(!decision.rule && decision.is_allowed == !has_allow);
            continue;
        }
        const Rule& rule = input.rules[expected.front()];
        GM_CHECK(decision.rule == expected.front());
        GM_CHECK(decision.is_allowed == (rule.verdict == Verdict::allow));
        if (decision.is_allowed) GM_CHECK(decision.permissions == rule.permissions);
        if (!decision.is_allowed)
            GM_CHECK(!decision.permissions.may_attach && !decision.permissions.may_notify);
    }
}

/// Names that are made of a pattern: its stars and sets kept as they are, and cut at both ends.
void add_names_of(std::string_view pattern, std::vector<std::string>& names) {
    const auto wildcard = Wildcard::parse(pattern);
    if (!wildcard) return;
    for (std::string& sample : wildcard->sample_names()) {
        GM_CHECK(!find_name_problem(sample));
        GM_CHECK(naive_match(pattern, sample) == true);
        names.push_back(std::move(sample));
    }
    for (const std::string& part :
         {wildcard->prefix(), wildcard->suffix(), wildcard->middle(), wildcard->prefix() + wildcard->suffix(),
          wildcard->prefix() + "~" + wildcard->middle() + wildcard->suffix()})
        names.push_back(part);
}

void check_covering(const Input& input, const std::vector<std::string>& names) {
    // Each pair of the first few: the product of two patterns is what takes time.
    constexpr std::size_t max_patterns = 3;
    const std::size_t count = std::min(input.rules.size(), max_patterns);
    for (std::size_t i = 0; i < count; ++i)
        for (std::size_t j = 0; j < count; ++j) {
            const std::string& outer = input.rules[i].pattern;
            const std::string& inner = input.rules[j].pattern;
            if (!is_usable(outer) || !is_usable(inner)) continue;
            const bool is_covered = covers(outer, inner);
            if (i == j) GM_CHECK(is_covered);
            if (!is_covered) continue;
            for (const std::string& name : names)
                if (!find_name_problem(name) && naive_match(inner, name).value_or(false))
                    GM_CHECK(naive_match(outer, name).value_or(false));
        }
}

void attack(std::string_view text) {
    const Input input = read_input(text);
    std::vector<std::string> names = input.names;
    for (const Rule& rule : input.rules) {
        const bool is_broken = !naive_match(rule.pattern, "").has_value();
        GM_CHECK(find_pattern_problem(rule.pattern).has_value() == (is_broken || !is_usable(rule.pattern)));
        if (is_usable(rule.pattern)) add_names_of(rule.pattern, names);
        names.push_back(rule.pattern);
    }
    check_decisions(input, names);
    check_covering(input, names);
}

}  // namespace
}  // namespace guestmem::share

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    guestmem::share::attack({reinterpret_cast<const char*>(data), size});
    return 0;
}
