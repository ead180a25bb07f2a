// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/wildcard.hpp"

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <set>

#include "guestmem/share/config.hpp"

namespace guestmem::share {
namespace {

using Alphabet = std::bitset<256>;

/// The characters of names.
const Alphabet& name_characters() {
    static const Alphabet characters = [] {
        Alphabet all;
        for (std::size_t c = ' '; c <= '~'; ++c) all.set(c, c != '/');
        return all;
    }();
    return characters;
}

/// A character of a set, `\` taken away; moves `at` behind it.
std::optional<unsigned char> set_character(std::string_view pattern, std::size_t& at) {
    if (at < pattern.size() && pattern[at] == '\\') ++at;
    if (at >= pattern.size()) return std::nullopt;
    return static_cast<unsigned char>(pattern[at++]);
}

}  // namespace

/// Position i stands before atom i; the last one accepts.
struct Wildcard::Form {
    struct Atom {
        bool is_star = false;
        Alphabet accepted = {};
    };
    std::vector<Atom> atoms;
    bool is_empty = false;  ///< no name fits
};

std::expected<std::size_t, std::string> Wildcard::read_set(std::string_view pattern, std::size_t at,
                                                           Set& set) {
    const auto open = [] { return std::unexpected{std::string{"'[' without ']'"}}; };
    const bool is_inverse = at < pattern.size() && pattern[at] == '!';
    if (is_inverse) ++at;
    // Other shells take it for '!': whoever writes it may mean either.
    if (at < pattern.size() && pattern[at] == '^')
        return std::unexpected{
            std::string{"'^' first in a set: write '!' for all others, or '\\^' for itself"}};
    for (bool is_first = true;; is_first = false) {
        if (at >= pattern.size()) return open();
        if (pattern[at] == ']' && !is_first) break;
        const auto low = set_character(pattern, at);
        if (!low) return open();
        const bool is_range = at + 1 < pattern.size() && pattern[at] == '-' && pattern[at + 1] != ']';
        if (!is_range) {
            set.set(*low);
            continue;
        }
        ++at;
        const auto high = set_character(pattern, at);
        if (!high) return open();
        if (*high < *low)
            return std::unexpected{
                std::string{"a range of a set goes from the lower character to the higher"}};
        for (std::size_t c = *low; c <= *high; ++c) set.set(c);
    }
    if (is_inverse) set.flip();
    return at + 1;
}

std::expected<Wildcard, std::string> Wildcard::parse(std::string_view pattern) {
    Wildcard wildcard;
    for (std::size_t at = 0; at < pattern.size();) {
        const char c = pattern[at++];
        if (c == '*') {
            if (wildcard.atoms_.empty() || wildcard.atoms_.back().kind != Kind::star)
                wildcard.atoms_.push_back({.kind = Kind::star});
        } else if (c == '?') {
            wildcard.atoms_.push_back({.kind = Kind::any});
        } else if (c == '[') {
            Set set;
            const auto next = read_set(pattern, at, set);
            if (!next) return std::unexpected{next.error()};
            at = *next;
            wildcard.atoms_.push_back(
                {.kind = Kind::set, .byte = 0, .set = static_cast<std::uint32_t>(wildcard.sets_.size())});
            wildcard.sets_.push_back(set);
        } else if (c == '\\' && at == pattern.size()) {
            return std::unexpected{std::string{"'\\' at the end: write '\\\\' for itself"}};
        } else {
            const char literal = c == '\\' ? pattern[at++] : c;
            wildcard.atoms_.push_back({.kind = Kind::literal, .byte = static_cast<unsigned char>(literal)});
        }
    }
    wildcard.find_literals();
    return wildcard;
}

void Wildcard::find_literals() {
    std::string run;
    bool is_at_start = true;
    for (const Atom& atom : atoms_) {
        if (atom.kind == Kind::literal) {
            run.push_back(static_cast<char>(atom.byte));
            continue;
        }
        if (is_at_start) {
            prefix_ = run;
        } else if (run.size() > middle_.size()) {
            middle_ = run;
        }
        is_at_start = false;
        run.clear();
    }
    is_literal_ = is_at_start;
    (is_at_start ? prefix_ : suffix_) = run;
}

bool Wildcard::accepts(const Atom& atom, unsigned char byte) const {
    switch (atom.kind) {
        case Kind::literal: return atom.byte == byte;
        case Kind::set: return sets_[atom.set][byte];
        default: return true;
    }
}

bool Wildcard::matches(std::string_view name) const {
    constexpr std::size_t nowhere = static_cast<std::size_t>(-1);
    std::size_t at = 0;
    std::size_t atom = 0;
    // Only the last star is tried again: what an earlier one took leaves the later atoms no worse off.
    std::size_t star = nowhere;
    std::size_t retry = 0;
    while (at < name.size()) {
        const bool has_atom = atom < atoms_.size();
        if (has_atom && atoms_[atom].kind == Kind::star) {
            star = atom++;
            retry = at;
        } else if (has_atom && accepts(atoms_[atom], static_cast<unsigned char>(name[at]))) {
            ++atom;
            ++at;
        } else if (star == nowhere) {
            return false;
        } else {
            atom = star + 1;
            at = ++retry;
        }
    }
    while (atom < atoms_.size() && atoms_[atom].kind == Kind::star) ++atom;
    return atom == atoms_.size();
}

Wildcard::Form Wildcard::to_form() const {
    Form form;
    std::size_t count_characters = 0;
    for (const Atom& atom : atoms_) {
        Form::Atom plain{.is_star = atom.kind == Kind::star, .accepted = name_characters()};
        if (atom.kind == Kind::literal) plain.accepted = Alphabet{}.set(atom.byte) & name_characters();
        if (atom.kind == Kind::set) plain.accepted = sets_[atom.set] & name_characters();
        if (!plain.is_star) ++count_characters;
        form.is_empty = form.is_empty || plain.accepted.none();
        form.atoms.push_back(plain);
    }
    form.is_empty = form.is_empty || count_characters > max_name_bytes || form.atoms.empty();
    return form;
}

bool Wildcard::can_match_name() const { return !to_form().is_empty; }

std::vector<std::string> Wildcard::sample_names() const {
    const Form form = to_form();
    std::vector<std::string> names;
    if (form.is_empty) return names;
    for (const std::string_view filler :
         {std::string_view{}, std::string_view{"~"}, std::string_view{"a0"}}) {
        std::string name;
        for (const Form::Atom& atom : form.atoms) {
            if (atom.is_star) {
                name += filler;
                continue;
            }
            // Another character of a set for each name.
            std::size_t c = 0;
            for (std::size_t i = 0; i < 256; ++i)
                if (atom.accepted[i]) {
                    c = i;
                    if (names.empty()) break;
                }
            name.push_back(static_cast<char>(c));
        }
        if (!name.empty() && name.size() <= max_name_bytes) names.push_back(std::move(name));
    }
    std::ranges::sort(names);
    names.erase(std::ranges::unique(names).begin(), names.end());
    return names;
}

namespace {

constexpr std::size_t max_positions = 256;
using Positions = std::bitset<max_positions>;

/// The outer automaton with sets of positions as its states.
class Subsets {
public:
    template <typename Atoms>
    Subsets(const Atoms& atoms, const std::vector<std::size_t>& characters) : count_(atoms.size()) {
        for (std::size_t i = 0; i < count_; ++i) stars_.set(i, atoms[i].is_star);
        for (const std::size_t c : characters) {
            Positions moves;
            for (std::size_t i = 0; i < count_; ++i) moves.set(i, !atoms[i].is_star && atoms[i].accepted[c]);
            moves_.push_back(moves);
        }
    }
    [[nodiscard]] Positions start() const { return closure(Positions{1}); }
    [[nodiscard]] Positions step(const Positions& from, std::size_t character) const {
        return closure(((from & moves_[character]) << 1) | (from & stars_));
    }
    [[nodiscard]] bool accepts(const Positions& positions) const { return positions[count_]; }

private:
    /// A star may be empty; two never stand side by side, so that one step is enough.
    [[nodiscard]] Positions closure(const Positions& positions) const {
        return positions | ((positions & stars_) << 1);
    }

    std::size_t count_;
    Positions stars_;
    std::vector<Positions> moves_;  ///< per character: positions whose atom takes it
};

/// One character of each kind that no atom of both tells apart.
template <typename Atoms>
std::vector<std::size_t> representatives(const Atoms& outer, const Atoms& inner) {
    std::set<std::vector<bool>> seen;
    std::vector<std::size_t> characters;
    for (std::size_t c = 0; c < 256; ++c) {
        if (!name_characters()[c]) continue;
        std::vector<bool> signature;
        for (const Atoms* atoms : {&outer, &inner})
            for (const auto& atom : *atoms) signature.push_back(atom.accepted[c]);
        if (seen.insert(std::move(signature)).second) characters.push_back(c);
    }
    return characters;
}

}  // namespace

bool Wildcard::covers(const Wildcard& inner_wildcard) const {
    const Form outer = to_form();
    const Form inner = inner_wildcard.to_form();
    if (inner.is_empty) return true;
    if (outer.is_empty || outer.atoms.size() >= max_positions) return false;
    const std::vector<std::size_t> characters = representatives(outer.atoms, inner.atoms);
    const Subsets subsets{outer.atoms, characters};
    const std::size_t last = inner.atoms.size();

    struct State {
        std::size_t position;
        Positions outer;
        std::size_t length;
    };
    std::deque<State> open;
    // Fewer positions of the outer one, and fewer characters used, leave a counterexample more room: what was seen
    // with no more of either is not looked at again. States come in the order of their lengths.
    std::map<std::size_t, std::vector<Positions>> seen;
    std::size_t count = 0;
    const auto add = [&](std::size_t position, const Positions& positions, std::size_t length) {
        const auto add_one = [&](std::size_t at) {
            // The empty text is no name, and says nothing about the texts that lead to the same place.
            if (length != 0) {
                std::vector<Positions>& known = seen[at];
                const auto is_within = [&](const Positions& other) { return (other & ~positions).none(); };
                if (std::ranges::any_of(known, is_within)) return;
                known.push_back(positions);
            }
            open.push_back({at, positions, length});
            ++count;
        };
        add_one(position);
        if (position < last && inner.atoms[position].is_star) add_one(position + 1);
    };
    add(0, subsets.start(), 0);
    while (!open.empty()) {
        const State state = open.front();
        open.pop_front();
        if (count > max_cover_states) return false;
        if (state.position == last) {
            if (state.length != 0 && !subsets.accepts(state.outer)) return false;
            continue;
        }
        if (state.length == max_name_bytes) continue;
        const Form::Atom& atom = inner.atoms[state.position];
        for (std::size_t i = 0; i < characters.size(); ++i)
            if (atom.accepted[characters[i]])
                add(atom.is_star ? state.position : state.position + 1, subsets.step(state.outer, i),
                    state.length + 1);
    }
    return true;
}

}  // namespace guestmem::share
