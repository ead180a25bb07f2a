// SPDX-License-Identifier: Apache-2.0
#include "guestmem/base/diagnostic.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <numeric>
#include <optional>
#include <tuple>

namespace guestmem {
namespace {

std::optional<std::string_view> line_of(std::string_view text, std::size_t line) {
    for (std::size_t at = 1; at < line; ++at) {
        const std::size_t newline = text.find('\n');
        if (newline == std::string_view::npos) return std::nullopt;
        text.remove_prefix(newline + 1);
    }
    std::string_view found = text.substr(0, text.find('\n'));
    if (found.ends_with('\r')) found.remove_suffix(1);
    return found;
}

/// How many bytes the UTF-8 character at the start of `text` has; 0 when there is none.
std::size_t character_bytes(std::string_view text) {
    const auto byte = [&](std::size_t at) { return static_cast<unsigned char>(text[at]); };
    std::size_t count = 0;
    if (byte(0) < 0x80) {
        count = 1;
    } else if (byte(0) >= 0xc2 && byte(0) < 0xf5) {
        count = byte(0) < 0xe0 ? 2 : byte(0) < 0xf0 ? 3 : 4;
    }
    if (count > text.size()) return 0;
    for (std::size_t i = 1; i < count; ++i)
        if ((byte(i) & 0xc0) != 0x80) return 0;
    return count;
}

/// A terminal obeys these: C0, DEL, and C1, which is U+0080 to U+009F.
bool is_control(std::string_view character) {
    const auto first = static_cast<unsigned char>(character[0]);
    if (first < ' ' || first == 0x7f) return true;
    return first == 0xc2 && static_cast<unsigned char>(character[1]) < 0xa0;
}

/// The characters of a line as they are shown: tabs become blanks, other control characters and what is no
/// UTF-8 question marks, one column each. The caret stays true.
std::vector<std::string_view> shown_characters(std::string_view line) {
    std::vector<std::string_view> characters;
    while (!line.empty()) {
        const std::size_t count = character_bytes(line);
        std::string_view character = line.substr(0, std::max<std::size_t>(count, 1));
        line.remove_prefix(character.size());
        if (character == "\t") {
            character = " ";
        } else if (count == 0 || is_control(character)) {
            character = "?";
        }
        characters.push_back(character);
    }
    return characters;
}

std::string printable(std::string_view line) {
    return fmt::format("{}", fmt::join(shown_characters(line), ""));
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<std::size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), std::size_t{0});
    for (std::size_t i = 1; i <= a.size(); ++i) {
        std::size_t diagonal = row[0];
        row[0] = i;
        for (std::size_t j = 1; j <= b.size(); ++j) {
            const std::size_t substitution = diagonal + (a[i - 1] == b[j - 1] ? 0U : 1U);
            diagonal = row[j];
            row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitution});
        }
    }
    return row.back();
}

void append(std::string& out, const std::string& file, std::string_view text, const Diagnostic& diagnostic) {
    const TextPosition position = diagnostic.position;
    const std::string message = printable(diagnostic.message);
    const std::string advice = printable(diagnostic.advice);
    auto to = std::back_inserter(out);
    if (position.line == 0) {
        fmt::format_to(to, "{}: error: {}\n", file, message);
        if (!advice.empty()) fmt::format_to(to, "  = {}\n", advice);
        return;
    }
    fmt::format_to(to, "{}:{}:{}: error: {}\n", file, position.line, position.column, message);
    const std::string number = fmt::format("{:>3}", position.line);
    const auto line = line_of(text, position.line);
    const std::vector<std::string_view> characters = shown_characters(line.value_or(""));
    std::span shown{characters};
    std::size_t column = position.column;
    if (line && column >= 1 && column <= shown.size() + 1) {
        if (shown.size() > max_shown_columns) {
            const std::size_t start = column > max_shown_columns / 2 ? column - max_shown_columns / 2 : 0;
            shown = shown.subspan(start, std::min(max_shown_columns, shown.size() - start));
            column -= start;
        }
        fmt::format_to(to, " {} | {}\n", number, fmt::join(shown, ""));
        fmt::format_to(to, " {:{}} | {:>{}}\n", "", number.size(), "^", column);
    }
    if (!advice.empty()) fmt::format_to(to, " {:{}} = {}\n", "", number.size(), advice);
}

}  // namespace

void Diagnostics::add(TextPosition position, std::string message, std::string advice) {
    if (found_.size() == max_diagnostics) {
        ++count_dropped_;
        return;
    }
    found_.push_back({position, std::move(message), std::move(advice)});
}

std::string Diagnostics::to_text() const {
    // By position, findings of one position in the order in which they came: addresses of one vector.
    std::vector<const Diagnostic*> sorted;
    for (const Diagnostic& diagnostic : found_) sorted.push_back(&diagnostic);
    std::ranges::sort(sorted, {}, [](const Diagnostic* diagnostic) {
        return std::tuple{diagnostic->position.line, diagnostic->position.column, diagnostic};
    });
    std::string out;
    for (const Diagnostic* diagnostic : sorted) append(out, file_, text_, *diagnostic);
    if (count_dropped_ != 0)
        fmt::format_to(std::back_inserter(out), "{}: and {} more\n", file_, count_dropped_);
    if (!out.empty()) out.pop_back();
    return out;
}

Error Diagnostics::to_error() const { return Error{Errc::invalid_argument, to_text()}; }

std::string_view closest_word(std::string_view word, std::span<const std::string_view> candidates) {
    // A typing error changes up to a third of the word; a word of another length is another word.
    constexpr std::size_t longest = 64;
    if (word.empty() || word.size() > longest) return {};
    std::string_view best;
    std::size_t best_distance = std::max<std::size_t>(1, word.size() / 3) + 1;
    for (const std::string_view candidate : candidates) {
        const std::size_t distance = edit_distance(word, candidate);
        if (distance < best_distance) {
            best = candidate;
            best_distance = distance;
        }
    }
    return best;
}

}  // namespace guestmem
