// SPDX-License-Identifier: Apache-2.0
#include "guestmem/base/diagnostic.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace guestmem {
namespace {

std::string shown(std::string text, TextPosition position) {
    Diagnostics diagnostics{"f.toml", std::move(text)};
    diagnostics.add(position, "wrong");
    return diagnostics.to_text();
}

/// The two lines under the message: what is shown of the text, and the caret.
struct Excerpt {
    std::string line;
    std::size_t caret = 0;
};

Excerpt excerpt_of(const std::string& text) {
    const std::size_t first = text.find('\n') + 1;
    const std::size_t second = text.find('\n', first) + 1;
    const std::size_t margin = std::string_view{"   1 | "}.size() + 1;
    return {text.substr(first + margin - 1, second - first - margin),
            text.find('^', second) - second - margin + 2};
}

TEST(Diagnostics, ShowsPlaceLineCaretAndAdvice) {
    Diagnostics diagnostics{"board.toml", "a = 1\nb = 2\n\nsize = 5000\n"};
    diagnostics.add({4, 8}, "size 5000 is not whole pages of 4096 bytes", "write 8192");

    EXPECT_EQ(diagnostics.to_text(),
              "board.toml:4:8: error: size 5000 is not whole pages of 4096 bytes\n"
              "   4 | size = 5000\n"
              "     |        ^\n"
              "     = write 8192");
}

TEST(Diagnostics, WithoutAPositionNamesOnlyTheFile) {
    Diagnostics diagnostics{"f.toml", "a = 1\n"};
    diagnostics.add({}, "no [[share]]", "add one");

    EXPECT_EQ(diagnostics.to_text(), "f.toml: error: no [[share]]\n  = add one");
}

TEST(Diagnostics, TheCaretStandsUnderTheFirstAndTheLastCharacter) {
    EXPECT_EQ(shown("abc", {1, 1}), "f.toml:1:1: error: wrong\n   1 | abc\n     | ^");
    EXPECT_EQ(shown("abc", {1, 3}), "f.toml:1:3: error: wrong\n   1 | abc\n     |   ^");
}

TEST(Diagnostics, TheCaretMayStandRightBehindTheLine) {
    EXPECT_EQ(shown("abc\n", {1, 4}), "f.toml:1:4: error: wrong\n   1 | abc\n     |    ^");
    EXPECT_EQ(shown("", {1, 1}), "f.toml:1:1: error: wrong\n   1 | \n     | ^");
}

TEST(Diagnostics, APositionOutsideOfTheTextIsShownWithoutALine) {
    EXPECT_EQ(shown("abc\n", {1, 5}), "f.toml:1:5: error: wrong");
    EXPECT_EQ(shown("abc\n", {1, 0}), "f.toml:1:0: error: wrong");
    EXPECT_EQ(shown("abc\n", {9, 2}), "f.toml:9:2: error: wrong");
    EXPECT_EQ(shown("abc\n", {3, 1}), "f.toml:3:1: error: wrong");
    EXPECT_EQ(shown("abc\n", {1, static_cast<std::size_t>(-1)}),
              "f.toml:1:18446744073709551615: error: wrong");
}

TEST(Diagnostics, ATabIsOneColumnWide) {
    EXPECT_EQ(shown("\ta\tb", {1, 4}), "f.toml:1:4: error: wrong\n   1 |  a b\n     |    ^");
}

TEST(Diagnostics, ACarriageReturnAtTheLineIsNotShown) {
    EXPECT_EQ(shown("a = 1\r\nb = 2\r\n", {2, 5}), "f.toml:2:5: error: wrong\n   2 | b = 2\n     |     ^");
    EXPECT_EQ(shown("a\rb", {1, 3}), "f.toml:1:3: error: wrong\n   1 | a?b\n     |   ^");
}

TEST(Diagnostics, ControlCharactersOfTheTextBecomeQuestionMarks) {
    EXPECT_EQ(shown("a\x1b[31mb\x7f\x01", {1, 2}), "f.toml:1:2: error: wrong\n   1 | a?[31mb??\n     |  ^");
}

TEST(Diagnostics, ControlCharactersBeyondAsciiBecomeQuestionMarks) {
    // U+009B opens a terminal's command like ESC [; 0x9b alone does in Latin-1.
    EXPECT_EQ(excerpt_of(shown("a\xc2\x9b"
                               "b",
                               {1, 3}))
                  .line,
              "a?b");
    EXPECT_EQ(excerpt_of(shown("a\x9b"
                               "b",
                               {1, 3}))
                  .line,
              "a?b");
    EXPECT_EQ(excerpt_of(shown("a\xc2\xa0"
                               "b",
                               {1, 3}))
                  .line,
              "a\xc2\xa0"
              "b");
}

TEST(Diagnostics, ControlCharactersOfAMessageAndAnAdviceBecomeQuestionMarks) {
    Diagnostics diagnostics{"f.toml", "x"};
    diagnostics.add({1, 1}, "unknown key '\x1b[2J\n'",
                    "not \x1b"
                    "c");

    EXPECT_EQ(diagnostics.to_text(),
              "f.toml:1:1: error: unknown key '?[2J?'\n   1 | x\n     | ^\n     = not ?c");
}

TEST(Diagnostics, AColumnCountsCharacters) {
    EXPECT_EQ(shown("n = \"Zürich\", 5", {1, 15}),
              "f.toml:1:15: error: wrong\n   1 | n = \"Zürich\", 5\n     |               ^");
}

TEST(Diagnostics, BytesThatAreNoCharacterCountOneColumnEach) {
    // A lone continuation byte, an overlong form, a character cut short by the line.
    EXPECT_EQ(excerpt_of(shown("\x80|\xc0\xaf|\xe2\x82", {1, 1})).line, "?|??|??");
}

TEST(Diagnostics, ALineAtTheLimitIsShownWholeAndOnePastIsCut) {
    const std::string whole(max_shown_columns, 'x');
    EXPECT_EQ(excerpt_of(shown(whole, {1, 1})).line, whole);
    EXPECT_EQ(excerpt_of(shown(whole + "y", {1, 1})).line, whole);
}

TEST(Diagnostics, ALongLineIsCutAroundTheCaret) {
    std::string line(5'000, '.');
    for (const std::size_t column : {std::size_t{1}, std::size_t{80}, std::size_t{81}, std::size_t{82},
                                     std::size_t{2'500}, std::size_t{4'999}, std::size_t{5'000}}) {
        line[column - 1] = '#';
        const Excerpt excerpt = excerpt_of(shown(line, {1, column}));
        line[column - 1] = '.';
        EXPECT_LE(excerpt.line.size(), max_shown_columns) << column;
        ASSERT_LE(excerpt.caret, excerpt.line.size()) << column;
        EXPECT_EQ(excerpt.line[excerpt.caret - 1], '#') << column;
    }
}

TEST(Diagnostics, ALongLineIsCutBetweenCharacters) {
    std::string line;
    for (int i = 0; i < 400; ++i) line += "ä";
    const std::string text = shown(line, {1, 200});

    const Excerpt excerpt = excerpt_of(text);

    EXPECT_EQ(excerpt.line.size(), 2 * max_shown_columns);
    EXPECT_EQ(excerpt.line.find('?'), std::string::npos);
}

TEST(Diagnostics, FindingsStandInTheOrderOfTheirPositions) {
    Diagnostics diagnostics{"f", "one line only"};
    diagnostics.add({7, 1}, "third");
    diagnostics.add({2, 9}, "second");
    diagnostics.add({2, 1}, "first");
    diagnostics.add({2, 9}, "second too");

    EXPECT_EQ(diagnostics.to_text(),
              "f:2:1: error: first\nf:2:9: error: second\nf:2:9: error: second too\nf:7:1: error: third");
}

TEST(Diagnostics, AtTheLimitAllAreSaidAndOnePastIsCounted) {
    Diagnostics diagnostics{"f", ""};
    for (std::size_t i = 1; i <= max_diagnostics; ++i) diagnostics.add({i, 1}, "wrong");
    EXPECT_EQ(diagnostics.to_text().find("more"), std::string::npos);

    diagnostics.add({1, 1}, "wrong");

    EXPECT_EQ(diagnostics.found().size(), max_diagnostics);
    EXPECT_TRUE(diagnostics.to_text().ends_with("\nf: and 1 more"));
}

TEST(Diagnostics, NothingFoundIsAnEmptyText) {
    const Diagnostics diagnostics{"f", "a\n"};
    EXPECT_TRUE(diagnostics.is_empty());
    EXPECT_EQ(diagnostics.to_text(), "");
}

TEST(Diagnostics, AsAnErrorIsAnInvalidArgument) {
    Diagnostics diagnostics{"f", "a\n"};
    diagnostics.add({1, 1}, "wrong");
    EXPECT_EQ(diagnostics.to_error().code(), Errc::invalid_argument);
    EXPECT_EQ(diagnostics.to_error().message(), diagnostics.to_text());
}

TEST(Diagnostics, AnyTextAndAnyPositionGivePrintableLines) {
    constexpr std::uint64_t seed = 30'001;
    std::mt19937_64 random{seed};
    for (int turn = 0; turn < 500; ++turn) {
        std::string text;
        for (std::uint64_t left = random() % 600; left > 0; --left) text += static_cast<char>(random());
        const std::string out = shown(text, {random() % 5, random() % 600});
        for (const char c : out)
            EXPECT_TRUE(c == '\n' || static_cast<unsigned char>(c) >= ' ')
                << "seed " << seed << " turn " << turn;
    }
}

constexpr std::array<std::string_view, 4> words{"size", "vectors", "slots", "socket"};

TEST(ClosestWord, FindsATypingError) {
    EXPECT_EQ(closest_word("sizes", words), "size");
    EXPECT_EQ(closest_word("siez", words), "");
    EXPECT_EQ(closest_word("sise", words), "size");
    EXPECT_EQ(closest_word("vectros", words), "vectors");
    EXPECT_EQ(closest_word("vector", words), "vectors");
    EXPECT_EQ(closest_word("sockets", words), "socket");
}

TEST(ClosestWord, LeavesAWordAloneThatIsFarFromAll) {
    EXPECT_EQ(closest_word("owner", words), "");
    EXPECT_EQ(closest_word("", words), "");
    EXPECT_EQ(closest_word("size", {}), "");
}

TEST(ClosestWord, PrefersTheClosestOfSeveral) {
    constexpr std::array<std::string_view, 3> close{"slot", "slots", "slits"};
    EXPECT_EQ(closest_word("slots", close), "slots");
}

TEST(ClosestWord, AtTheLengthLimitStillLooksAndOnePastDoesNot) {
    const std::string longest(64, 'w');
    const std::string other = std::string(63, 'w') + "v";
    const std::array<std::string_view, 1> candidates{other};
    EXPECT_EQ(closest_word(longest, candidates), other);
    EXPECT_EQ(closest_word(longest + "w", candidates), "");
}

}  // namespace
}  // namespace guestmem
