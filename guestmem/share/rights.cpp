// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/rights.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <unordered_map>
#include <utility>

#include "guestmem/share/wildcard.hpp"

namespace guestmem::share {
namespace {

/// Longer runs in the middle of a pattern stand under one of their pieces of this size.
constexpr std::size_t max_piece_bytes = 3;

struct TextHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};

/// Rules by a text that what they match must have at one place, ascending.
class Table {
public:
    using Places = std::vector<std::uint32_t>;

    void add(std::string_view key, std::uint32_t rule) {
        auto found = rules_.find(key);
        if (found == rules_.end()) found = rules_.emplace(std::string{key}, Places{}).first;
        found->second.push_back(rule);
        if (!has_length(key.size()))
            lengths_.insert(std::ranges::lower_bound(lengths_, key.size()), key.size());
    }
    [[nodiscard]] const Places* find(std::string_view key) const {
        const auto found = rules_.find(key);
        return found == rules_.end() ? nullptr : &found->second;
    }
    [[nodiscard]] std::size_t count(std::string_view key) const {
        const Places* places = find(key);
        return places == nullptr ? 0 : places->size();
    }
    /// The lengths of the keys, ascending.
    [[nodiscard]] const std::vector<std::size_t>& lengths() const { return lengths_; }

private:
    [[nodiscard]] bool has_length(std::size_t length) const {
        return std::ranges::binary_search(lengths_, length);
    }

    std::unordered_map<std::string, Places, TextHash, std::equal_to<>> rules_;
    std::vector<std::size_t> lengths_;
};

struct Tables {
    Table literals;
    Table prefixes;
    Table suffixes;
    Table pieces;
};

/// Calls use(table, key) for each key that a pattern may stand under.
template <typename Use>
void for_each_key(Tables& tables, const Wildcard& wildcard, Use use) {
    if (!wildcard.prefix().empty()) use(tables.prefixes, std::string_view{wildcard.prefix()});
    if (!wildcard.suffix().empty()) use(tables.suffixes, std::string_view{wildcard.suffix()});
    const std::string_view middle = wildcard.middle();
    if (middle.empty()) return;
    const std::size_t length = std::min(middle.size(), max_piece_bytes);
    for (std::size_t at = 0; at + length <= middle.size(); ++at)
        use(tables.pieces, middle.substr(at, length));
}

std::string printable(std::string_view text) {
    std::string shown{text};
    for (char& c : shown)
        if (c < ' ' || c > '~') c = '?';
    return shown;
}

}  // namespace

struct Rights::Index {
    std::vector<Rule> rules;
    std::vector<Wildcard> wildcards;  ///< of each rule; one that matches nothing stands in no table
    Tables tables;
    Table::Places loose;  ///< without any literal character
    bool has_allow = false;

    explicit Index(std::vector<Rule> list) : rules(std::move(list)) {
        Tables counts;
        std::vector<bool> is_usable;
        for (const Rule& rule : rules) {
            has_allow = has_allow || rule.verdict == Verdict::allow;
            auto wildcard = Wildcard::parse(rule.pattern);
            is_usable.push_back(wildcard && !find_pattern_problem(rule.pattern));
            wildcards.push_back(wildcard ? *std::move(wildcard) : Wildcard{});
            if (!is_usable.back()) continue;
            for_each_key(counts, wildcards.back(),
                         [](Table& table, std::string_view key) { table.add(key, 0); });
        }
        for (std::uint32_t rule = 0; rule < rules.size(); ++rule)
            if (is_usable[rule]) file(rule, counts);
    }

    /// Under the key that the fewest rules have.
    void file(std::uint32_t rule, Tables& counts) {
        const Wildcard& wildcard = wildcards[rule];
        if (wildcard.is_literal()) return tables.literals.add(wildcard.prefix(), rule);
        std::size_t fewest = std::numeric_limits<std::size_t>::max();
        const Table* best = nullptr;
        std::string_view best_key;
        for_each_key(counts, wildcard, [&](Table& table, std::string_view key) {
            const std::size_t count = table.count(key);
            if (count >= fewest) return;
            fewest = count;
            best = &table;
            best_key = key;
        });
        if (best == nullptr) return loose.push_back(rule);
        Table& table = best == &counts.prefixes   ? tables.prefixes
                       : best == &counts.suffixes ? tables.suffixes
                                                  : tables.pieces;
        table.add(best_key, rule);
    }

    /// Calls use(places) for each list of rules that may match, some of them more than once.
    template <typename Use>
    void for_each_list(std::string_view name, Use use) const {
        const auto look_up = [&](const Table& table, std::string_view key) {
            if (const Table::Places* places = table.find(key)) use(*places);
        };
        for (const std::size_t length : tables.prefixes.lengths()) {
            if (length > name.size()) break;
            look_up(tables.prefixes, name.substr(0, length));
        }
        for (const std::size_t length : tables.suffixes.lengths()) {
            if (length > name.size()) break;
            look_up(tables.suffixes, name.substr(name.size() - length));
        }
        for (const std::size_t length : tables.pieces.lengths())
            for (std::size_t at = 0; at + length <= name.size(); ++at)
                look_up(tables.pieces, name.substr(at, length));
        if (!loose.empty()) use(loose);
    }
};

Rights::Rights() : Rights(std::vector<Rule>{}) {}

Rights::Rights(std::vector<Rule> rules) : index_(std::make_shared<const Index>(std::move(rules))) {}

Decision Rights::decide(std::string_view name) const {
    constexpr auto nothing = std::numeric_limits<std::uint32_t>::max();
    const Index& index = *index_;
    std::uint32_t first = nothing;
    if (const Table::Places* literals = index.tables.literals.find(name)) first = literals->front();
    index.for_each_list(name, [&](const Table::Places& places) {
        for (const std::uint32_t rule : places) {
            if (rule >= first) return;
            if (index.wildcards[rule].matches(name)) {
                first = rule;
                return;
            }
        }
    });
    constexpr Permissions none{
        .may_attach = false, .may_create = false, .may_notify = false, .is_read_only = false};
    if (first == nothing) {
        const bool is_allowed = !index.has_allow;
        return {.is_allowed = is_allowed, .permissions = is_allowed ? Permissions{} : none, .rule = {}};
    }
    const Rule& rule = index.rules[first];
    const bool is_allowed = rule.verdict == Verdict::allow;
    return {.is_allowed = is_allowed, .permissions = is_allowed ? rule.permissions : none, .rule = first};
}

const std::vector<Rule>& Rights::rules() const { return index_->rules; }

std::vector<std::size_t> Rights::rules_that_match(std::string_view name) const {
    std::vector<std::size_t> found;
    if (const Table::Places* literals = index_->tables.literals.find(name))
        found.assign(literals->begin(), literals->end());
    index_->for_each_list(name, [&](const Table::Places& places) {
        for (const std::uint32_t rule : places)
            if (index_->wildcards[rule].matches(name)) found.push_back(rule);
    });
    std::ranges::sort(found);
    found.erase(std::ranges::unique(found).begin(), found.end());
    return found;
}

std::string Rights::describe(const Decision& decision, std::string_view file) const {
    if (rules().empty()) return "no rules, which allows everything";
    if (!decision.rule || *decision.rule >= rules().size())
        return fmt::format("the implicit '{} *' at the end of the list",
                           index_->has_allow ? "deny" : "allow");
    const Rule& rule = rules()[*decision.rule];
    const std::string place =
        rule.line == 0 ? fmt::format("rule {}", *decision.rule + 1) : fmt::format("{}:{}", file, rule.line);
    return fmt::format("{} '{}' ({})", rule.verdict == Verdict::allow ? "allow" : "deny",
                       printable(rule.pattern), place);
}

bool matches(std::string_view pattern, std::string_view name) {
    const auto wildcard = Wildcard::parse(pattern);
    return wildcard && wildcard->matches(name);
}

std::optional<std::string> find_pattern_problem(std::string_view pattern) {
    if (pattern.empty()) return "a pattern has at least one character; '*' is every name";
    if (pattern.size() > max_pattern_bytes)
        return fmt::format("a pattern has at most {} bytes, this one has {}", max_pattern_bytes,
                           pattern.size());
    if (pattern.find('/') != std::string_view::npos)
        return "a pattern with '/' matches nothing: no name has one";
    const auto wildcard = Wildcard::parse(pattern);
    if (!wildcard) return wildcard.error();
    return std::nullopt;
}

bool covers(std::string_view outer, std::string_view inner) {
    const auto outer_wildcard = Wildcard::parse(outer);
    const auto inner_wildcard = Wildcard::parse(inner);
    // What cannot be read matches nothing.
    if (!inner_wildcard) return true;
    return outer_wildcard && outer_wildcard->covers(*inner_wildcard);
}

}  // namespace guestmem::share
