// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/smmu_lexer.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <optional>
#include <utility>

namespace guestmem::dma {
namespace {

constexpr std::string_view byte_order_mark = "\xef\xbb\xbf";
constexpr std::string_view command_line = "command line";

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }
bool is_visible_ascii(char c) { return c > ' ' && c < 0x7f; }

/// How many bytes of visible text `rest` begins with: one character of UTF-8 that no terminal obeys, or 0.
std::size_t visible_bytes(std::string_view rest) {
    const auto byte = [&](std::size_t at) { return static_cast<unsigned char>(rest[at]); };
    if (is_visible_ascii(rest.front())) return 1;
    if (byte(0) < 0xc2 || byte(0) > 0xf4) return 0;
    const std::size_t count = byte(0) < 0xe0 ? 2 : byte(0) < 0xf0 ? 3 : 4;
    if (rest.size() < count) return 0;
    for (std::size_t at = 1; at < count; ++at)
        if ((byte(at) & 0xc0) != 0x80) return 0;
    const bool is_c1_control = byte(0) == 0xc2 && byte(1) < 0xa0;
    return is_c1_control ? 0 : count;
}

/// How many characters stand before the first one that a token may not have; nothing when all are good.
std::optional<std::size_t> find_bad_character(std::string_view text) {
    const bool is_path = text.starts_with('@');
    for (std::size_t count = 0; !text.empty(); ++count) {
        const std::size_t bytes = visible_bytes(text);
        if (bytes == 0 || (bytes > 1 && !is_path)) return count;
        text.remove_prefix(bytes);
    }
    return std::nullopt;
}

/// Columns count characters: bytes that continue one do not count.
std::size_t count_characters(std::string_view text) {
    return static_cast<std::size_t>(
        std::ranges::count_if(text, [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

class Lexer {
public:
    Lexer(const SmmuLoader& loader, SmmuSources& sources) : loader_(loader), sources_(sources) {}

    void read_file(std::string_view text, const std::string& name, const SmmuPlace& included_at) {
        if (text.size() > max_smmu_file_bytes || text.size() > max_smmu_bytes - count_bytes_)
            return sources_.complain(included_at,
                                     fmt::format("{} has {} bytes: a file has at most {}, all together {}",
                                                 name, text.size(), max_smmu_file_bytes, max_smmu_bytes),
                                     "a board is a few lines: is it the right file?");
        count_bytes_ += text.size();
        if (text.starts_with(byte_order_mark)) text.remove_prefix(byte_order_mark.size());
        const std::uint32_t source =
            sources_.add({.name = name, .text = std::string{text}, .included_at = included_at});
        way_.push_back(name);
        for (std::uint32_t line = 1; !text.empty() && !is_full_; ++line) {
            const std::size_t newline = std::min(text.find('\n'), text.size());
            read_line(text.substr(0, newline), {.source = source, .line = line, .column = 1});
            text.remove_prefix(std::min(newline + 1, text.size()));
        }
        way_.pop_back();
    }

    void read_words(std::span<const std::string> words) {
        std::string joined;
        bool is_too_long = false;
        for (const std::string& word : words) {
            is_too_long = word.size() >= max_smmu_file_bytes - joined.size();
            if (is_too_long) break;
            joined += joined.empty() ? "" : " ";
            std::ranges::replace_copy_if(
                word, std::back_inserter(joined), [](char c) { return c == '\n' || c == '\r'; }, '?');
        }
        count_bytes_ = joined.size();
        const std::uint32_t source =
            sources_.add({.name = std::string{command_line}, .text = joined, .is_command_line = true});
        SmmuPlace place{.source = source, .line = 1, .column = 1};
        if (is_too_long)
            return sources_.complain(place,
                                     fmt::format("a command line has at most {} bytes", max_smmu_file_bytes),
                                     "put the words into a file and write @FILE");
        for (const std::string& word : words) {
            finish(word, place, false);
            place = place.moved_right(count_characters(word) + 1);
        }
    }

    std::vector<SmmuToken> take() { return std::move(tokens_); }

private:
    void read_line(std::string_view line, SmmuPlace place) {
        line = line.substr(0, line.find('#'));
        bool begins_line = true;
        while (!is_full_) {
            std::size_t count_blanks = 0;
            while (count_blanks < line.size() && is_blank(line[count_blanks])) ++count_blanks;
            line.remove_prefix(count_blanks);
            place = place.moved_right(count_blanks);
            if (line.empty()) return;
            const auto end = std::ranges::find_if(line, is_blank);
            const std::string_view token{line.begin(), end};
            finish(token, place, std::exchange(begins_line, false));
            place = place.moved_right(count_characters(token));
            line.remove_prefix(token.size());
        }
    }

    void finish(std::string_view text, const SmmuPlace& place, bool begins_line) {
        if (is_full_) return;
        if (text.empty()) return sources_.complain(place, "an empty word", "leave it out");
        if (text.size() > max_smmu_token_bytes)
            return sources_.complain(
                place, fmt::format("{} bytes in one word: at most {}", text.size(), max_smmu_token_bytes));
        if (const auto bad = find_bad_character(text)) {
            // A binary file is one mistake in each of its lines.
            if (place.source == last_bad_.source && place.line == last_bad_.line) return;
            last_bad_ = place;
            return sources_.complain(place.moved_right(*bad), "a character that no word has",
                                     "words are plain ASCII; behind '#' a file may say what it likes");
        }
        if (text.starts_with('@')) return include(std::string{text.substr(1)}, place);
        if (tokens_.size() == max_smmu_tokens) {
            is_full_ = true;
            return sources_.complain(place, fmt::format("more than {} words", max_smmu_tokens),
                                     "a board is a few lines: is it the right file?");
        }
        tokens_.push_back({.text = std::string{text}, .place = place, .begins_line = begins_line});
    }

    void include(const std::string& written, const SmmuPlace& place) {
        if (written.empty())
            return sources_.complain(place, "'@' without a file", "write @FILE, without a blank between");
        const std::string path = resolve(written);
        if (std::ranges::find(way_, path) != way_.end())
            return sources_.complain(
                place, fmt::format("{} includes itself: {} -> {}", path, fmt::join(way_, " -> "), path),
                "remove one of the includes");
        if (way_.size() >= max_smmu_include_depth)
            return sources_.complain(
                place, fmt::format("files {} deep: at most {}", way_.size() + 1, max_smmu_include_depth),
                "include the file from further up");
        if (sources_.count() >= max_smmu_sources)
            return sources_.complain(place, fmt::format("more than {} files", max_smmu_sources - 1),
                                     "put some of them together");
        if (count_bytes_ == max_smmu_bytes)
            return sources_.complain(place,
                                     fmt::format("more than {} bytes in all files together", max_smmu_bytes));
        if (!loader_)
            return sources_.complain(place, fmt::format("@{}: no file can be included here", written));
        const auto text = loader_(path, std::min(max_smmu_file_bytes, max_smmu_bytes - count_bytes_));
        if (!text)
            return sources_.complain(place, fmt::format("@{}: {}", written, text.error().message()),
                                     "a relative path begins in the folder of the file that includes it");
        read_file(*text, path, place);
    }

    [[nodiscard]] std::string resolve(const std::string& written) const {
        const std::filesystem::path path{written};
        if (way_.empty()) return path.lexically_normal().string();
        return (std::filesystem::path{way_.back()}.parent_path() / path).lexically_normal().string();
    }

    const SmmuLoader& loader_;
    SmmuSources& sources_;
    std::vector<SmmuToken> tokens_;
    std::vector<std::string> way_;  ///< the files that include what is being read
    std::size_t count_bytes_ = 0;
    SmmuPlace last_bad_;
    bool is_full_ = false;
};

}  // namespace

SmmuPlace SmmuPlace::moved_right(std::size_t count) const {
    SmmuPlace moved = *this;
    moved.column += static_cast<std::uint32_t>(count);
    return moved;
}

std::uint32_t SmmuSources::add(Added source) {
    sources_.push_back({.name = source.name,
                        .included_at = source.included_at,
                        .is_command_line = source.is_command_line,
                        .findings = Diagnostics{source.name, std::move(source.text)}});
    return static_cast<std::uint32_t>(sources_.size() - 1);
}

std::string SmmuSources::describe(const SmmuPlace& place) const {
    if (place.line == 0 || place.source >= sources_.size()) return {};
    const Source& source = sources_[place.source];
    return source.is_command_line ? source.name : fmt::format("{}:{}", source.name, place.line);
}

void SmmuSources::complain(const SmmuPlace& place, std::string message, std::string advice) {
    ++count_findings_;
    if (count_findings_ > max_diagnostics) return;
    if (sources_.empty()) sources_.push_back({.name = {}, .included_at = {}, .findings = {"words", ""}});
    Source& source = sources_[std::min<std::size_t>(place.source, sources_.size() - 1)];
    source.findings.add({place.line, place.column}, std::move(message), std::move(advice));
}

Error SmmuSources::to_error() const {
    std::vector<std::string> pieces;
    for (const Source& source : sources_) {
        if (source.findings.is_empty()) continue;
        pieces.push_back(source.findings.to_text());
        if (source.included_at.line != 0)
            pieces.push_back(fmt::format("{}: included at {}", source.name, describe(source.included_at)));
    }
    if (count_findings_ > max_diagnostics)
        pieces.push_back(fmt::format("and {} more", count_findings_ - max_diagnostics));
    return Error{Errc::invalid_argument, fmt::format("{}", fmt::join(pieces, "\n"))};
}

std::vector<SmmuToken> read_smmu_tokens(std::string_view text, const std::string& file_name,
                                        const SmmuLoader& loader, SmmuSources& sources) {
    Lexer lexer{loader, sources};
    lexer.read_file(text, file_name, {});
    return lexer.take();
}

std::vector<SmmuToken> read_smmu_tokens(std::span<const std::string> words, const SmmuLoader& loader,
                                        SmmuSources& sources) {
    Lexer lexer{loader, sources};
    lexer.read_words(words);
    return lexer.take();
}

}  // namespace guestmem::dma
