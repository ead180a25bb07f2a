// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/vmm/config/sources.hpp"

/// Turns the text of `.qvmconf` files and the words of a command line into tokens with places.
///
/// Concepts: a token is a run of characters without blanks. `#` outside of quotes begins a comment that ends with the
/// line. `"` quotes blanks and `#`, anywhere in a token; in quotes `\"` and `\\` stand for the character, a backslash
/// at the end of a line continues the string on the next one, and any other backslash is itself. Line breaks end
/// tokens and mean nothing else. `@FILE` as a token of its own stands for the tokens of that file; a quoted one does
/// not. A word of a command line is a token as it is: the shell has dealt with quotes and comments.
/// Contract: any bytes give tokens, findings or both. A relative `@FILE` in a file is looked for in that file's
/// folder; one on the command line, where the program runs. This room opens no file: a loader that the caller gives
/// reads them. Text is UTF-8 without control characters but tab, carriage return and newline.
/// Limits: max_source_bytes, max_sources, max_include_depth, max_tokens, max_token_bytes; each is a finding. A file
/// that includes itself, by whatever way, is a finding that names the way.
/// Threads: any; the loader is called from the caller's thread.

namespace guestmem::vmm {

inline constexpr std::size_t max_source_bytes = 1024 * 1024;
/// Of all files together.
inline constexpr std::size_t max_configuration_bytes = 4 * max_source_bytes;
inline constexpr std::size_t max_sources = 64;
inline constexpr std::size_t max_include_depth = 8;
inline constexpr std::size_t max_tokens = 65'536;
/// A path has 4095 bytes at most, a Linux command line 2047.
inline constexpr std::size_t max_token_bytes = 4096;

struct Token {
    std::string text;
    Place place;
    bool is_quoted = false;    ///< at least a part of it: never a word of the language
    bool begins_line = false;  ///< nothing but blanks before it; false for words of a command line
};

/// Reads a file of at most that many bytes, as read_text_file() of guestmem/sys/fd.hpp does.
using SourceLoader = std::function<Result<std::string>(const std::string& path, std::size_t limit_bytes)>;

[[nodiscard]] std::vector<Token> read_tokens_of_text(std::string_view text, const std::string& file_name,
                                                     const SourceLoader& loader, Sources& sources,
                                                     Findings& findings);
[[nodiscard]] std::vector<Token> read_tokens_of_words(std::span<const std::string> words,
                                                      const SourceLoader& loader, Sources& sources,
                                                      Findings& findings);

/// A text as one token of a file: in quotes where it needs them.
[[nodiscard]] std::string quote_token(std::string_view text);

}  // namespace guestmem::vmm
