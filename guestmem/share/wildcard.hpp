// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <string_view>
#include <vector>

/// One shell wildcard, read once and asked often.
///
/// Concepts: an atom is one character (a literal, `?`, a set) or `*`, any number of characters, none among them. `*`
/// and `?` take every byte, `/` among them. A set is `[a-z]` or `[!a-z]`; a `]` that comes first in it and a `-` that
/// comes first or last are characters; `\` quotes in a set, too. A name is what find_name_problem() of config.hpp has
/// nothing against.
/// Contract: parse() gives the pattern, or a sentence about what is wrong with it. covers() asks about names only: it
/// is exact as long as max_cover_states suffice, and says no where they do not. What no name fits is covered by all.
/// Threads: any; does not change once made.
/// Cost: matches() is linear in the product of pattern and name at worst, usually in the name.
/// covers() walks the product of both automata, the outer one made deterministic on the way, as far as names are long.

namespace guestmem::share {

inline constexpr std::size_t max_cover_states = 2000;

class Wildcard {
public:
    [[nodiscard]] static std::expected<Wildcard, std::string> parse(std::string_view pattern);

    [[nodiscard]] bool matches(std::string_view name) const;
    /// Whether there is a name that it matches.
    [[nodiscard]] bool can_match_name() const;
    [[nodiscard]] bool covers(const Wildcard& inner) const;
    /// Up to three names that it matches: the stars empty, and filled with one character.
    [[nodiscard]] std::vector<std::string> sample_names() const;

    /// No `*`, `?` or set: it matches prefix() alone.
    [[nodiscard]] bool is_literal() const { return is_literal_; }
    /// The literal characters that everything it matches begins with, ends with (behind the last other atom), and
    /// the longest run of them in between.
    [[nodiscard]] const std::string& prefix() const { return prefix_; }
    [[nodiscard]] const std::string& suffix() const { return suffix_; }
    [[nodiscard]] const std::string& middle() const { return middle_; }

private:
    enum class Kind : std::uint8_t { literal, any, star, set };
    struct Atom {
        Kind kind = Kind::any;
        unsigned char byte = 0;
        std::uint32_t set = 0;
    };
    using Set = std::bitset<256>;
    /// The atoms as covers() sees them: names have no other characters, and no more than max_name_bytes.
    struct Form;

    static std::expected<std::size_t, std::string> read_set(std::string_view pattern, std::size_t at,
                                                            Set& set);
    void find_literals();
    [[nodiscard]] bool accepts(const Atom& atom, unsigned char byte) const;
    [[nodiscard]] Form to_form() const;

    std::vector<Atom> atoms_;
    std::vector<Set> sets_;
    std::string prefix_;
    std::string suffix_;
    std::string middle_;
    bool is_literal_ = false;
};

}  // namespace guestmem::share
