// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/lexer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "guestmem/vmm/config/characters.hpp"

namespace guestmem::vmm {
namespace {

constexpr std::string_view byte_order_mark = "\xef\xbb\xbf";

/// Walks one text and knows the place of each character.
class Cursor {
public:
    Cursor(std::string_view text, std::uint32_t source) : rest_(text), source_(source) {}

    [[nodiscard]] bool is_at_end() const { return rest_.empty(); }
    [[nodiscard]] bool is_at(char c) const { return rest_.starts_with(c); }
    [[nodiscard]] bool is_at_line_end() const {
        return rest_.empty() || is_at('\n') || rest_.starts_with("\r\n");
    }
    [[nodiscard]] bool is_at_blank() const { return is_at(' ') || is_at('\t') || is_at('\r') || is_at('\n'); }
    [[nodiscard]] bool is_at_line_start() const { return is_line_start_; }
    [[nodiscard]] Place place() const { return {.source = source_, .line = line_, .column = column_}; }
    [[nodiscard]] Character character() const { return first_character(rest_); }

    /// The next character, which is behind the cursor after it.
    std::string_view take() {
        const std::string_view taken = rest_.substr(0, first_character(rest_).count_bytes);
        rest_.remove_prefix(taken.size());
        if (taken == "\n") {
            ++line_;
            column_ = 1;
            is_line_start_ = true;
        } else {
            ++column_;
            if (taken != " " && taken != "\t" && taken != "\r") is_line_start_ = false;
        }
        return taken;
    }
    void take_line_end() {
        if (is_at('\r')) take();
        if (!is_at_end()) take();
    }

private:
    std::string_view rest_;
    std::uint32_t source_;
    std::uint32_t line_ = 1;
    std::uint32_t column_ = 1;
    bool is_line_start_ = true;
};

class Lexer {
public:
    Lexer(const SourceLoader& loader, Sources& sources, Findings& findings)
        : loader_(loader), sources_(sources), findings_(findings) {}

    void read_file(std::string_view text, const std::string& name, const Place& included_at) {
        if (text.size() > max_source_bytes || text.size() > max_configuration_bytes - count_bytes_) {
            findings_.add(included_at,
                          fmt::format("{} has {} bytes: a file has at most {}, all together {}", name,
                                      text.size(), max_source_bytes, max_configuration_bytes),
                          "a configuration is a few lines: is it the right file?");
            return;
        }
        count_bytes_ += text.size();
        if (text.starts_with(byte_order_mark)) text.remove_prefix(byte_order_mark.size());
        const std::uint32_t source =
            sources_.add({.name = name, .text = std::string{text}, .included_at = included_at});
        way_.push_back(name);
        Cursor cursor{text, source};
        while (skip_blanks(cursor)) read_token(cursor);
        way_.pop_back();
    }

    void read_words(std::span<const std::string> words) {
        const std::span kept = words.first(std::min(words.size(), max_tokens));
        const std::uint32_t source =
            sources_.add({.name = {}, .text = join(kept), .included_at = {}, .is_command_line = true});
        std::uint32_t number = 0;
        for (const std::string& word : kept) {
            ++number;
            Token token{.text = word, .place = {.source = source, .line = number, .column = 1}};
            check_word(token);
            finish(std::move(token));
        }
        if (kept.size() < words.size()) complain_of_count({.source = source, .line = number, .column = 1});
    }

    std::vector<Token> take() { return std::move(tokens_); }

private:
    /// One word to a line, so that line and column lead to it.
    static std::string join(std::span<const std::string> words) {
        std::string text;
        for (const std::string& word : words) {
            // A long word is a finding; it need not be shown whole.
            for (const char c : std::string_view{word}.substr(0, max_token_bytes))
                text += c == '\n' || c == '\r' ? '?' : c;
            text += '\n';
        }
        return text;
    }

    /// False at the end of the text, or when there are too many tokens to go on.
    bool skip_blanks(Cursor& cursor) {
        while (!cursor.is_at_end() && !is_full_) {
            if (cursor.is_at('#')) {
                while (!cursor.is_at_line_end()) take_checked(cursor);
            } else if (cursor.is_at_blank()) {
                cursor.take();
            } else {
                return true;
            }
        }
        return false;
    }

    /// The next character, or nothing where it is none that a configuration may have.
    std::string_view take_checked(Cursor& cursor) {
        const Character character = cursor.character();
        const Place place = cursor.place();
        const std::string_view taken = cursor.take();
        // A stray carriage return would hide what stands before it on a terminal.
        if (character.is_text && taken != "\r") return taken;
        complain_of_character(place, character, taken);
        return {};
    }

    void complain_of_character(const Place& place, const Character& character, std::string_view bytes) {
        // One for each line: a binary file is one mistake.
        if (place.source == last_bad_.source && place.line == last_bad_.line) return;
        last_bad_ = place;
        const auto first = static_cast<unsigned char>(bytes.front());
        if (!character.is_utf8) {
            findings_.add(place, fmt::format("the byte 0x{:02x} is no UTF-8", first),
                          "save the file as UTF-8; plain ASCII is always right");
        } else {
            findings_.add(place, fmt::format("a control character (0x{:02x})", first), "remove it");
        }
    }

    void read_token(Cursor& cursor) {
        Token token{.text = {}, .place = cursor.place(), .begins_line = cursor.is_at_line_start()};
        while (!cursor.is_at_end() && !cursor.is_at_blank() && !cursor.is_at('#')) {
            if (cursor.is_at('"')) {
                token.is_quoted = true;
                read_quoted(cursor, token.text);
            } else {
                token.text += take_checked(cursor);
            }
        }
        if (token.text.size() > max_token_bytes) return complain_of_length(token.place, token.text.size());
        finish(std::move(token));
    }

    void read_quoted(Cursor& cursor, std::string& text) {
        const Place opening = cursor.place();
        cursor.take();
        while (!cursor.is_at_line_end()) {
            if (cursor.is_at('"')) {
                cursor.take();
                return;
            }
            if (cursor.is_at('\\')) {
                cursor.take();
                if (cursor.is_at_line_end() && !cursor.is_at_end()) {
                    cursor.take_line_end();
                } else if (cursor.is_at('"') || cursor.is_at('\\')) {
                    text += cursor.take();
                } else {
                    text += '\\';
                }
                continue;
            }
            text += take_checked(cursor);
        }
        findings_.add(opening, "this quote is not closed on its line",
                      "close it with \", or end the line with a backslash to go on with the next one");
    }

    void check_word(Token& token) {
        if (token.text.size() > max_token_bytes) {
            complain_of_length(token.place, token.text.size());
            token.text.clear();
        }
        std::size_t column = 0;
        for (std::string_view rest = token.text; !rest.empty(); ++column) {
            const Character character = first_character(rest);
            const bool is_break = rest.front() == '\n' || rest.front() == '\r';
            if (!character.is_text || is_break) {
                complain_of_character(token.place.moved_right(column), character, rest);
                token.text.clear();
                return;
            }
            rest.remove_prefix(character.count_bytes);
        }
    }

    void complain_of_length(const Place& place, std::size_t count_bytes) {
        findings_.add(place, fmt::format("{} bytes in one word: at most {}", count_bytes, max_token_bytes),
                      "is a quote missing its end?");
    }

    void complain_of_count(const Place& place) {
        if (is_full_) return;
        is_full_ = true;
        findings_.add(place, fmt::format("more than {} words", max_tokens),
                      "a configuration is a few lines: is it the right file?");
    }

    void finish(Token token) {
        if (is_full_) return;
        if (!token.is_quoted && token.text.starts_with('@')) return include(token);
        if (tokens_.size() == max_tokens) return complain_of_count(token.place);
        token.place.order = static_cast<std::uint32_t>(tokens_.size());
        tokens_.push_back(std::move(token));
    }

    void include(const Token& token) {
        const std::string written = token.text.substr(1);
        if (written.empty())
            return findings_.add(token.place, "'@' without a file",
                                 "write @FILE, without a blank between; quote a word that begins with '@'");
        const std::string path = resolve(written);
        if (std::ranges::find(way_, path) != way_.end())
            return findings_.add(
                token.place, fmt::format("{} includes itself: {} -> {}", path, fmt::join(way_, " -> "), path),
                "remove one of the includes");
        if (way_.size() >= max_include_depth)
            return findings_.add(
                token.place, fmt::format("includes {} deep: at most {}", way_.size() + 1, max_include_depth),
                "include the file from further up");
        if (sources_.all().size() >= max_sources)
            return findings_.add(token.place, fmt::format("more than {} files", max_sources - 1),
                                 "put some of them together");
        if (count_bytes_ == max_configuration_bytes)
            return findings_.add(token.place, fmt::format("more than {} bytes in all files together",
                                                          max_configuration_bytes));
        if (!loader_)
            return findings_.add(token.place, fmt::format("@{}: no file can be included here", written));
        auto text = loader_(path, std::min(max_source_bytes, max_configuration_bytes - count_bytes_));
        if (!text)
            return findings_.add(token.place, fmt::format("@{}: {}", written, text.error().message()),
                                 "a relative path begins in the folder of the file that includes it");
        read_file(*text, path, token.place);
    }

    [[nodiscard]] std::string resolve(const std::string& written) const {
        const std::filesystem::path path{written};
        if (way_.empty()) return path.lexically_normal().string();
        return (std::filesystem::path{way_.back()}.parent_path() / path).lexically_normal().string();
    }

    const SourceLoader& loader_;
    Sources& sources_;
    Findings& findings_;
    std::vector<Token> tokens_;
    std::vector<std::string> way_;  ///< the files that include what is being read
    std::size_t count_bytes_ = 0;
    Place last_bad_;
    bool is_full_ = false;
};

}  // namespace

std::vector<Token> read_tokens_of_text(std::string_view text, const std::string& file_name,
                                       const SourceLoader& loader, Sources& sources, Findings& findings) {
    Lexer lexer{loader, sources, findings};
    lexer.read_file(text, file_name, {});
    return lexer.take();
}

std::vector<Token> read_tokens_of_words(std::span<const std::string> words, const SourceLoader& loader,
                                        Sources& sources, Findings& findings) {
    Lexer lexer{loader, sources, findings};
    lexer.read_words(words);
    return lexer.take();
}

std::string quote_token(std::string_view text) {
    const bool is_plain =
        !text.empty() && !text.starts_with('@') && text.find_first_of(" \t\"#") == std::string_view::npos;
    if (is_plain) return std::string{text};
    std::string quoted = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') quoted += '\\';
        quoted += c;
    }
    return quoted + '"';
}

}  // namespace guestmem::vmm
