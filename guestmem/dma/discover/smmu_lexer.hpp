// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/diagnostic.hpp"
#include "guestmem/base/result.hpp"

/// Turns `.smmu` files and words of a command line into tokens with places, and gathers what is wrong with them.
///
/// Concepts: a token is a run of characters without blanks. In a file `#` begins a comment that ends with the line; a
/// word of a command line is a token as it is. Line breaks end tokens and mean nothing else. A token `@FILE` stands for
/// the tokens of that file. There are no quotes.
/// Contract: any bytes give tokens, findings or both. A relative `@FILE` in a file is looked for in that file's folder;
/// one on the command line, where the program runs. Files are read by the caller's function. Tokens are visible ASCII
/// characters, or `@` and a path in UTF-8. Findings of a file read `board.smmu:4:8: error: ...` with the line and a
/// caret, and name who included the file; those of a command line show it as one line.
/// Limits: max_smmu_*; each is a finding. A file that includes itself, by whatever way, is a finding that names the
/// way. max_diagnostics findings are kept, the rest is counted.
/// Lifetime: tokens own their text; an SmmuSources outlives what refers to it.
/// Threads: one at a time; the loader is called from the caller's thread.

namespace guestmem::dma {

inline constexpr std::size_t max_smmu_file_bytes = 1024 * 1024;
/// Of all files and the command line together.
inline constexpr std::size_t max_smmu_bytes = 4 * max_smmu_file_bytes;
inline constexpr std::size_t max_smmu_sources = 64;
inline constexpr std::size_t max_smmu_include_depth = 8;
inline constexpr std::size_t max_smmu_tokens = 65536;
/// A path has 4095 bytes at most.
inline constexpr std::size_t max_smmu_token_bytes = 4096;

struct SmmuPlace {
    std::uint32_t source = 0;
    std::uint32_t line = 0;  ///< from 1; 0: nowhere
    std::uint32_t column = 0;

    /// The same, `count` characters to the right.
    [[nodiscard]] SmmuPlace moved_right(std::size_t count) const;
};

struct SmmuToken {
    std::string text = {};
    SmmuPlace place = {};
    bool begins_line = false;  ///< nothing but blanks before it; false for words of a command line
};

/// Reads a file of at most that many bytes, as read_text_file() of guestmem/sys/fd.hpp does.
using SmmuLoader = std::function<Result<std::string>(const std::string& path, std::size_t limit_bytes)>;

/// The texts that were read, and what is wrong in them.
class SmmuSources {
public:
    struct Added {
        std::string name;
        std::string text;
        SmmuPlace included_at = {};  ///< nowhere for the first one
        bool is_command_line = false;
    };

    [[nodiscard]] std::uint32_t add(Added source);
    [[nodiscard]] std::size_t count() const { return sources_.size(); }
    /// "board.smmu:7" or "command line".
    [[nodiscard]] std::string describe(const SmmuPlace& place) const;

    void complain(const SmmuPlace& place, std::string message, std::string advice = {});
    [[nodiscard]] bool has_findings() const { return count_findings_ != 0; }
    /// Nobody sees further findings: who complains may leave out what is costly.
    [[nodiscard]] bool is_full() const { return count_findings_ >= max_diagnostics; }
    /// An error (invalid_argument) with all findings, source by source, each in the order of its places.
    [[nodiscard]] Error to_error() const;

private:
    struct Source {
        std::string name;
        SmmuPlace included_at;
        bool is_command_line = false;
        Diagnostics findings;
    };
    std::vector<Source> sources_;
    std::size_t count_findings_ = 0;
};

[[nodiscard]] std::vector<SmmuToken> read_smmu_tokens(std::string_view text, const std::string& file_name,
                                                      const SmmuLoader& loader, SmmuSources& sources);
[[nodiscard]] std::vector<SmmuToken> read_smmu_tokens(std::span<const std::string> words,
                                                      const SmmuLoader& loader, SmmuSources& sources);

}  // namespace guestmem::dma
