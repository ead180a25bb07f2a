// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/smmu_lexer.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace guestmem::dma {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Read {
    std::vector<SmmuToken> tokens = {};
    SmmuSources sources = {};

    [[nodiscard]] std::vector<std::string> texts() const {
        std::vector<std::string> all;
        for (const SmmuToken& token : tokens) all.push_back(token.text);
        return all;
    }
    [[nodiscard]] std::string findings() const {
        return sources.has_findings() ? sources.to_error().message() : std::string{};
    }
};

SmmuLoader loader_of(std::map<std::string, std::string> files) {
    return
        [files = std::move(files)](const std::string& path, std::size_t limit_bytes) -> Result<std::string> {
            const auto found = files.find(path);
            if (found == files.end()) return Error{Errc::not_found, "no such file"};
            if (found->second.size() > limit_bytes) return Error{Errc::out_of_range, "too long"};
            return found->second;
        };
}

Read read_file(std::string_view text, const SmmuLoader& loader = {}) {
    Read read;
    read.tokens = read_smmu_tokens(text, "board.smmu", loader, read.sources);
    return read;
}

Read read_words(const std::vector<std::string>& words, const SmmuLoader& loader = {}) {
    Read read;
    read.tokens = read_smmu_tokens(std::span<const std::string>{words}, loader, read.sources);
    return read;
}

TEST(SmmuLexer, BlanksAndLinesEndTokensAndACommentEndsWithItsLine) {
    const Read read = read_file("smmu\tvtd # Intel\r\n\n  debug#x\n1");
    EXPECT_THAT(read.texts(), ElementsAre("smmu", "vtd", "debug", "1"));
    EXPECT_EQ(read.findings(), "");
    EXPECT_TRUE(read.tokens[0].begins_line);
    EXPECT_FALSE(read.tokens[1].begins_line);
    EXPECT_TRUE(read.tokens[2].begins_line);
    EXPECT_EQ(read.tokens[2].place.line, 3U);
    EXPECT_EQ(read.tokens[2].place.column, 3U);
    EXPECT_EQ(read.sources.describe(read.tokens[3].place), "board.smmu:4");
}

TEST(SmmuLexer, AWordOfACommandLineIsATokenWithItsHash) {
    const Read read = read_words({"allow", "a#b"});
    EXPECT_THAT(read.texts(), ElementsAre("allow", "a#b"));
    EXPECT_EQ(read.sources.describe(read.tokens[1].place), "command line");
    EXPECT_EQ(read.tokens[1].place.column, 7U);
}

TEST(SmmuLexer, AFileStandsWhereItIsNamedAndFindsItsNeighborsInItsFolder) {
    const Read read =
        read_words({"a", "@/etc/board.smmu", "z"}, loader_of({{"/etc/board.smmu", "b @parts/c.smmu d"},
                                                              {"/etc/parts/c.smmu", "c1 @../e.smmu"},
                                                              {"/etc/e.smmu", "e1"}}));
    EXPECT_THAT(read.texts(), ElementsAre("a", "b", "c1", "e1", "d", "z"));
    EXPECT_EQ(read.findings(), "");
    EXPECT_EQ(read.sources.describe(read.tokens[3].place), "/etc/e.smmu:1");
}

TEST(SmmuLexer, AFileThatIncludesItselfIsToldWithTheWay) {
    const Read read = read_words({"@a"}, loader_of({{"a", "x\n@b"}, {"b", "y @./a"}}));
    EXPECT_THAT(read.texts(), ElementsAre("x", "y"));
    EXPECT_THAT(read.findings(), HasSubstr("b:1:3: error: a includes itself: a -> b -> a"));
    EXPECT_THAT(read.findings(), HasSubstr("b: included at a:2"));
}

TEST(SmmuLexer, FilesNestUpToTheLimitAndNotOneDeeper) {
    std::map<std::string, std::string> files;
    for (std::size_t at = 1; at < max_smmu_include_depth; ++at)
        files[fmt::format("{}", at)] = fmt::format("w @{}", at + 1);
    files[fmt::format("{}", max_smmu_include_depth)] = "w";
    EXPECT_EQ(read_words({"@1"}, loader_of(files)).findings(), "");
    files[fmt::format("{}", max_smmu_include_depth)] = "w @9";
    files["9"] = "w";
    EXPECT_THAT(read_words({"@1"}, loader_of(files)).findings(), HasSubstr("files 9 deep: at most 8"));
}

TEST(SmmuLexer, ThereAreAsManyFilesAndWordsAsTheLimitsSay) {
    std::vector<std::string> words(max_smmu_sources - 1, "@a");
    const SmmuLoader loader = loader_of({{"a", "x"}});
    EXPECT_EQ(read_words(words, loader).findings(), "");
    words.emplace_back("@a");
    EXPECT_THAT(read_words(words, loader).findings(), HasSubstr("more than 63 files"));

    std::string text;
    for (std::size_t at = 0; at < max_smmu_tokens; ++at) text += "x ";
    EXPECT_EQ(read_file(text).findings(), "");
    const Read read = read_file(text + "x x");
    EXPECT_EQ(read.tokens.size(), max_smmu_tokens);
    EXPECT_THAT(read.findings(), HasSubstr("more than 65536 words"));
}

TEST(SmmuLexer, AFileAWordAndACommandLineAreBounded) {
    EXPECT_EQ(read_file(std::string(max_smmu_file_bytes, ' ')).findings(), "");
    EXPECT_THAT(read_file(std::string(max_smmu_file_bytes + 1, ' ')).findings(),
                HasSubstr("at most 1048576"));
    EXPECT_EQ(read_file(std::string(max_smmu_token_bytes, 'x')).findings(), "");
    EXPECT_THAT(read_file(std::string(max_smmu_token_bytes + 1, 'x')).findings(),
                HasSubstr("4097 bytes in one word: at most 4096"));
    EXPECT_THAT(read_words(std::vector<std::string>(max_smmu_file_bytes / 4096 + 1, std::string(4096, 'x')))
                    .findings(),
                HasSubstr("a command line has at most 1048576 bytes"));
    const std::string big(max_smmu_file_bytes, ' ');
    EXPECT_THAT(read_words({"@a", "@a", "@a", "@a"}, loader_of({{"a", big}})).findings(),
                HasSubstr("@a: too long"))
        << "the words of the command line are a part of all bytes";
}

TEST(SmmuLexer, AMissingFileAndAnEmptyNameAreToldAtTheirPlace) {
    EXPECT_THAT(read_file("\n  @gone", loader_of({})).findings(),
                HasSubstr("board.smmu:2:3: error: @gone: no such file"));
    EXPECT_THAT(read_file("@ x").findings(), HasSubstr("'@' without a file"));
    EXPECT_THAT(read_file("@x").findings(), HasSubstr("no file can be included here"));
}

TEST(SmmuLexer, ControlCharactersReachNoTokenAndNoTerminal) {
    for (const std::string bad : {"a\x1b[31m", "a\x7f", "a\xc2\x9b", "a\xff", "@f\xc2\x9b", "\xc3\xa4",
                                  "a\x01"
                                  "b"}) {
        const Read read = read_words({bad});
        EXPECT_TRUE(read.tokens.empty());
        EXPECT_THAT(read.findings(), HasSubstr("command line:1:"));
        EXPECT_EQ(read.findings().find('\x1b'), std::string::npos);
        EXPECT_EQ(read.findings().find('\x9b'), std::string::npos);
    }
    EXPECT_EQ(read_file("# \x1b \xff\nx").findings(), "") << "a comment may say what it likes";
    EXPECT_EQ(read_words({"@\xc3\xa4"}, loader_of({{"\xc3\xa4", "x"}})).findings(), "");
}

TEST(SmmuLexer, FindingsBeyondTheLimitAreCounted) {
    std::string text;
    for (std::size_t at = 0; at < max_diagnostics + 3; ++at) text += "\x01\n";
    const std::string findings = read_file(text).findings();
    EXPECT_THAT(findings, HasSubstr("board.smmu:50:1"));
    EXPECT_THAT(findings, ::testing::Not(HasSubstr("board.smmu:51:1")));
    EXPECT_THAT(findings, ::testing::EndsWith("and 3 more"));
}

}  // namespace
}  // namespace guestmem::dma
