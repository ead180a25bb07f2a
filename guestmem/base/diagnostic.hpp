// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/error.hpp"

/// What is wrong in a text that a person wrote: file:line:column, the line, a caret, what to write instead.
///
/// Concepts: a Diagnostic is one finding at one position; Diagnostics gathers all of a text, so that a user
/// sees every mistake at once. Lines and columns count from 1; a column counts characters of UTF-8, as toml++
/// does, and each byte that is part of none.
/// Contract: positions outside of the text are shown without the line. Control characters of the text, of a
/// message or of an advice never reach the terminal: they are shown as '?', a tab as a blank. Lines longer than
/// max_shown_columns are cut around the caret.
/// Limits: at most max_diagnostics are kept; the rest is counted and said.
/// Threads: one at a time.
/// Known holes: a character that a terminal draws two columns wide moves the caret by one.
/// Example output:
///     board.toml:4:8: error: size 5000 is not whole pages of 4096 bytes
///       4 | size = 5000
///         |        ^
///         = write 8192

namespace guestmem {

struct TextPosition {
    std::size_t line = 0;
    std::size_t column = 0;
};

struct Diagnostic {
    TextPosition position;
    std::string message;
    std::string advice;  ///< what to write instead; may be empty
};

inline constexpr std::size_t max_diagnostics = 50;
inline constexpr std::size_t max_shown_columns = 160;

class Diagnostics {
public:
    Diagnostics(std::string file, std::string text) : file_(std::move(file)), text_(std::move(text)) {}

    void add(TextPosition position, std::string message, std::string advice = {});
    [[nodiscard]] bool is_empty() const { return found_.empty(); }
    [[nodiscard]] std::span<const Diagnostic> found() const { return found_; }
    [[nodiscard]] const std::string& file() const { return file_; }

    /// All findings in the order of their positions, as the example above shows.
    [[nodiscard]] std::string to_text() const;
    /// An error (invalid_argument) whose message is to_text().
    [[nodiscard]] Error to_error() const;

private:
    std::string file_;
    std::string text_;
    std::vector<Diagnostic> found_;
    std::size_t count_dropped_ = 0;
};

/// The candidate closest to `word` when it is close enough to be a typing error; else empty.
[[nodiscard]] std::string_view closest_word(std::string_view word,
                                            std::span<const std::string_view> candidates);

}  // namespace guestmem
