// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/lexer.hpp"

#include <gmock/gmock.h>

#include "guestmem/vmm/config/testing/read_config.hpp"

namespace guestmem::vmm {
namespace {

using ::testing::ElementsAre;
using testing::Files;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::loader_of;
using ::testing::SizeIs;

class LexerTest : public ::testing::Test {
protected:
    std::vector<std::string> texts_of(std::string_view text, const Files& files = {}) {
        tokens_ = read_tokens_of_text(text, "main.qvmconf", loader_of(files), sources_, findings_);
        return texts();
    }
    std::vector<std::string> texts_of_words(const std::vector<std::string>& words, const Files& files = {}) {
        tokens_ = read_tokens_of_words(words, loader_of(files), sources_, findings_);
        return texts();
    }
    std::vector<std::string> texts() const {
        std::vector<std::string> texts;
        for (const Token& token : tokens_) texts.push_back(token.text);
        return texts;
    }

    Sources sources_;
    Findings findings_{sources_};
    std::vector<Token> tokens_;
};

TEST_F(LexerTest, LineBreaksAndIndentationMeanNothingButAnEndOfAToken) {
    const auto wanted = ElementsAre("ram", "1M", "vdev", "x", "loc", "2");
    EXPECT_THAT(texts_of("ram 1M\nvdev x\n    loc 2\n"), wanted);
    EXPECT_THAT(texts_of("ram\n1M vdev\n\n\n   x loc\t2"), wanted);
    EXPECT_THAT(texts_of("ram 1M\r\nvdev x\r\n\tloc 2\r\n"), wanted);
    EXPECT_THAT(texts_of(" ram\r1M vdev x loc 2"), wanted);
    EXPECT_TRUE(findings_.is_empty()) << findings_.to_text();
    EXPECT_THAT(texts_of(""), IsEmpty());
    EXPECT_THAT(texts_of("\n \n"), IsEmpty());
}

TEST_F(LexerTest, ACommentGoesToTheEndOfItsLine) {
    EXPECT_THAT(texts_of("# all of it\nram # 1M\n2M#3M\n#"), ElementsAre("ram", "2M"));
    EXPECT_THAT(texts_of("load \"a#b\""), ElementsAre("load", "a#b"));
    EXPECT_TRUE(findings_.is_empty());
}

TEST_F(LexerTest, QuotesKeepBlanksAndEscapes) {
    EXPECT_THAT(texts_of(R"(cmdline "a b")"), ElementsAre("cmdline", "a b"));
    EXPECT_THAT(texts_of(R"("say \"no\" to \\ and \n")"), ElementsAre(R"(say "no" to \ and \n)"));
    EXPECT_THAT(texts_of(R"(memory-backend-file,mem-path="/a b/c",x=1)"),
                ElementsAre("memory-backend-file,mem-path=/a b/c,x=1"));
    EXPECT_THAT(texts_of(R"("" x)"), ElementsAre("", "x"));
    EXPECT_THAT(texts_of(R"(a\b)"), ElementsAre(R"(a\b)"));
    EXPECT_TRUE(findings_.is_empty());
}

TEST_F(LexerTest, ABackslashContinuesAString) {
    EXPECT_THAT(texts_of("cmdline \"a \\\nb \\\r\n  c\" x"), ElementsAre("cmdline", "a b   c", "x"));
    EXPECT_TRUE(findings_.is_empty());
}

TEST_F(LexerTest, AStringEndsOnItsLine) {
    EXPECT_THAT(texts_of("cmdline \"a b\nram 1M\n"), ElementsAre("cmdline", "a b", "ram", "1M"));
    EXPECT_EQ(findings_.to_text(),
              "main.qvmconf:1:9: error: this quote is not closed on its line\n"
              "   1 | cmdline \"a b\n"
              "     |         ^\n"
              "     = close it with \", or end the line with a backslash to go on with the next one");
    EXPECT_THAT(texts_of("\"a \\"), ElementsAre("a \\"));
    EXPECT_THAT(findings_.found(), SizeIs(2));
}

TEST_F(LexerTest, EachTokenKnowsItsPlace) {
    texts_of("ram 1M\n  \xc3\xa4\xc3\xa4 loc \"q q\" z");
    const auto place = [&](std::size_t at) {
        return std::tuple{tokens_[at].place.line, tokens_[at].place.column, tokens_[at].place.order};
    };
    EXPECT_EQ(place(0), (std::tuple{1U, 1U, 0U}));
    EXPECT_EQ(place(1), (std::tuple{1U, 5U, 1U}));
    EXPECT_EQ(place(2), (std::tuple{2U, 3U, 2U}));
    EXPECT_EQ(place(3), (std::tuple{2U, 6U, 3U}));
    EXPECT_EQ(place(4), (std::tuple{2U, 10U, 4U}));
    EXPECT_EQ(place(5), (std::tuple{2U, 16U, 5U}));
    EXPECT_TRUE(tokens_[0].begins_line && tokens_[2].begins_line);
    EXPECT_FALSE(tokens_[1].begins_line || tokens_[3].begins_line);
    EXPECT_TRUE(tokens_[4].is_quoted);
    EXPECT_FALSE(tokens_[5].is_quoted);
}

TEST_F(LexerTest, AByteOrderMarkIsSkipped) {
    EXPECT_THAT(texts_of("\xef\xbb\xbfram"), ElementsAre("ram"));
    EXPECT_EQ(tokens_[0].place.column, 1U);
    EXPECT_TRUE(findings_.is_empty());
}

TEST_F(LexerTest, WhatIsNoTextIsSaidOncePerLine) {
    using namespace std::string_view_literals;
    texts_of("ram \x01\x02\nload \xff\xfe\n# \x1b[2J\n\"a\rb\"\nx\0y"sv);
    EXPECT_THAT(findings_.found(), SizeIs(5));
    const std::string said = findings_.to_text();
    EXPECT_THAT(said, HasSubstr("main.qvmconf:1:5: error: a control character (0x01)"));
    EXPECT_THAT(said, HasSubstr("main.qvmconf:2:6: error: the byte 0xff is no UTF-8"));
    EXPECT_THAT(said, HasSubstr("main.qvmconf:3:3: error: a control character (0x1b)"));
    EXPECT_THAT(said, HasSubstr("main.qvmconf:4:3: error: a control character (0x0d)"));
    EXPECT_THAT(said, HasSubstr("main.qvmconf:5:2: error: a control character (0x00)"));
}

TEST_F(LexerTest, AnIncludeStandsForTheTokensOfItsFile) {
    const Files files{{"dir/two", "b @three"}, {"dir/three", "c"}, {"/abs", "d"}};
    EXPECT_THAT(texts_of("a @dir/two @/abs \"@e\" f@g", files), ElementsAre("a", "b", "c", "d", "@e", "f@g"));
    EXPECT_TRUE(findings_.is_empty()) << findings_.to_text();
    EXPECT_EQ(sources_.describe(tokens_[2].place), "dir/three:1:1");
    EXPECT_EQ(tokens_[3].place.order, 3U);
}

TEST_F(LexerTest, AFileMayBeIncludedTwiceButNotInItself) {
    EXPECT_THAT(texts_of("@two @two", {{"two", "b"}}), ElementsAre("b", "b"));
    EXPECT_TRUE(findings_.is_empty());
    texts_of("@two", {{"two", "x @./three"}, {"three", "@sub/../two @main.qvmconf"}});
    const std::string said = findings_.to_text();
    EXPECT_THAT(said,
                HasSubstr("three:1:1: error: two includes itself: main.qvmconf -> two -> three -> two"));
    EXPECT_THAT(said,
                HasSubstr("main.qvmconf includes itself: main.qvmconf -> two -> three -> main.qvmconf"));
    EXPECT_THAT(said, HasSubstr("three: included at two:1:3"));
}

TEST_F(LexerTest, AMissingFileIsSaidAtItsInclude) {
    EXPECT_THAT(texts_of("a\n  @nowhere b"), ElementsAre("a", "b"));
    EXPECT_EQ(findings_.to_text(),
              "main.qvmconf:2:3: error: @nowhere: open nowhere: no such file\n"
              "   2 |   @nowhere b\n"
              "     |   ^\n"
              "     = a relative path begins in the folder of the file that includes it");
    texts_of("@");
    EXPECT_THAT(findings_.to_text(), HasSubstr("'@' without a file"));
}

TEST_F(LexerTest, WithoutALoaderNothingIsIncluded) {
    EXPECT_THAT(read_tokens_of_text("@two", "main.qvmconf", {}, sources_, findings_), IsEmpty());
    EXPECT_THAT(findings_.to_text(), HasSubstr("@two: no file can be included here"));
}

TEST_F(LexerTest, IncludesHaveALimitOfDepth) {
    Files files;
    for (std::size_t depth = 1; depth <= max_include_depth; ++depth)
        files[fmt::format("f{}", depth)] = fmt::format("@f{}", depth + 1);
    files[fmt::format("f{}", max_include_depth - 1)] = "end";
    EXPECT_THAT(texts_of("@f1", files), ElementsAre("end"));
    EXPECT_TRUE(findings_.is_empty());
    files[fmt::format("f{}", max_include_depth - 1)] = fmt::format("@f{}", max_include_depth);
    EXPECT_THAT(texts_of("@f1", files), IsEmpty());
    EXPECT_THAT(findings_.to_text(), HasSubstr("includes 9 deep: at most 8"));
}

TEST_F(LexerTest, FilesHaveALimitOfNumber) {
    std::string text;
    for (std::size_t i = 1; i < max_sources; ++i) text += "@x ";
    EXPECT_THAT(texts_of(text, {{"x", "y"}}), SizeIs(max_sources - 1));
    EXPECT_TRUE(findings_.is_empty());
    Sources sources;
    Findings findings{sources};
    EXPECT_THAT(read_tokens_of_text(text + "@x", "main.qvmconf", loader_of({{"x", "y"}}), sources, findings),
                SizeIs(max_sources - 1));
    EXPECT_THAT(findings.to_text(), HasSubstr("more than 63 files"));
}

TEST_F(LexerTest, FilesHaveALimitOfSize) {
    const std::string full = "a" + std::string(max_source_bytes - 1, '\n');
    EXPECT_THAT(texts_of(full), ElementsAre("a"));
    EXPECT_TRUE(findings_.is_empty());
    EXPECT_THAT(texts_of(full + "\n"), IsEmpty());
    EXPECT_THAT(findings_.to_text(), HasSubstr("has 1048577 bytes: a file has at most 1048576"));
}

TEST_F(LexerTest, AllFilesTogetherHaveALimitOfSize) {
    const std::string full = "a" + std::string(max_source_bytes - 1, '\n');
    EXPECT_THAT(texts_of("@x @x @x", {{"x", full}}), SizeIs(3));
    EXPECT_TRUE(findings_.is_empty());
    texts_of("@x @x @x @x", {{"x", full}});
    EXPECT_THAT(findings_.to_text(), HasSubstr("x is larger than"));
    std::string rest = "@x @x @x @y @z";
    rest.resize(max_source_bytes - 16, '\n');
    texts_of(rest, {{"x", full}, {"y", std::string(16, '\n')}, {"z", ""}});
    EXPECT_THAT(findings_.to_text(), HasSubstr("more than 4194304 bytes in all files together"));
}

TEST_F(LexerTest, ALoaderThatGivesMoreThanItMayIsNotBelieved) {
    const SourceLoader loader = [](const std::string&, std::size_t) -> Result<std::string> {
        return std::string(max_source_bytes + 1, 'x');
    };
    EXPECT_THAT(read_tokens_of_text("@x", "main", loader, sources_, findings_), IsEmpty());
    EXPECT_THAT(findings_.to_text(), HasSubstr("main:1:1: error: x has 1048577 bytes"));
}

TEST_F(LexerTest, TokensHaveALimitOfNumber) {
    std::string text;
    for (std::size_t i = 0; i < max_tokens; ++i) text += "a ";
    EXPECT_THAT(texts_of(text), SizeIs(max_tokens));
    EXPECT_TRUE(findings_.is_empty());
    EXPECT_THAT(texts_of(text + "b c d"), SizeIs(max_tokens));
    EXPECT_THAT(findings_.found(), SizeIs(1));
    EXPECT_THAT(findings_.to_text(), HasSubstr("more than 65536 words"));
}

TEST_F(LexerTest, TokensHaveALimitOfLength) {
    EXPECT_THAT(texts_of(std::string(max_token_bytes, 'a')), SizeIs(1));
    EXPECT_TRUE(findings_.is_empty());
    EXPECT_THAT(texts_of(std::string(max_token_bytes + 1, 'a')), IsEmpty());
    EXPECT_THAT(findings_.to_text(), HasSubstr("4097 bytes in one word: at most 4096"));
    texts_of_words({std::string(max_token_bytes + 1, 'a')});
    EXPECT_THAT(findings_.to_text(), HasSubstr("command line, word 1: error: 4097 bytes in one word"));
}

TEST_F(LexerTest, WordsOfACommandLineAreTokensAsTheyAre) {
    EXPECT_THAT(texts_of_words({"cmdline", "a \"b\" # \\", "@two", ""}, {{"two", "ram 1M"}}),
                ElementsAre("cmdline", "a \"b\" # \\", "ram", "1M", ""));
    EXPECT_TRUE(findings_.is_empty());
    EXPECT_EQ(sources_.describe(tokens_[1].place), "command line, word 2");
    EXPECT_EQ(sources_.describe(tokens_[3].place), "two:1:5");
    EXPECT_EQ(sources_.describe(tokens_[4].place), "command line, word 4");
}

TEST_F(LexerTest, WordsOfACommandLineAreTextToo) {
    texts_of_words({"ram", "1\nM", "\xff", "a\x1b"});
    const std::string said = findings_.to_text();
    EXPECT_THAT(said,
                HasSubstr("command line, word 2: error: a control character (0x0a)\n   2 | 1?M\n     |  ^"));
    EXPECT_THAT(said, HasSubstr("command line, word 3: error: the byte 0xff is no UTF-8"));
    EXPECT_THAT(said, HasSubstr("command line, word 4: error: a control character (0x1b)"));
}

TEST_F(LexerTest, WordsOfACommandLineHaveALimitOfNumber) {
    EXPECT_THAT(texts_of_words(std::vector<std::string>(max_tokens, "a")), SizeIs(max_tokens));
    EXPECT_TRUE(findings_.is_empty());
    EXPECT_THAT(texts_of_words(std::vector<std::string>(max_tokens + 1, "a")), SizeIs(max_tokens));
    EXPECT_THAT(findings_.to_text(), HasSubstr("more than 65536 words"));
}

TEST_F(LexerTest, AQuotedTokenIsReadAsTheSameText) {
    for (const std::string text :
         {"a", "", "a b", "@file", "a#b", "say \"no\"", "back\\slash", "\\ \"", "t\tt", "\\"}) {
        EXPECT_THAT(texts_of(quote_token(text)), ElementsAre(text));
        EXPECT_THAT(sources_.all().back().text, quote_token(text));
    }
    EXPECT_TRUE(findings_.is_empty());
    EXPECT_EQ(quote_token("0x1000,/boot/a.elf"), "0x1000,/boot/a.elf");
}

}  // namespace
}  // namespace guestmem::vmm
