// SPDX-License-Identifier: Apache-2.0
#include "guestmem/base/table_reader.hpp"

#include <gmock/gmock.h>

#include <array>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace guestmem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr std::array<std::string_view, 3> known{"name", "size", "mode"};

/// What the reader says of the text of a table when `use` has read it.
std::string said(const std::string& text, const std::function<void(TableReader&)>& use) {
    Diagnostics diagnostics{"f.toml", text};
    const auto root = parse_toml(text, diagnostics);
    EXPECT_TRUE(root);
    if (root) {
        TableReader table{*root, "[thing]", known, diagnostics};
        use(table);
    }
    return diagnostics.is_empty() ? "nothing" : diagnostics.to_text();
}

TEST(TableReader, AnUnknownKeyIsShownWithTheClosest) {
    EXPECT_THAT(said("sizes = 1\n", [](TableReader&) {}),
                HasSubstr("f.toml:1:1: error: unknown key 'sizes' in [thing]\n"
                          "   1 | sizes = 1\n"
                          "     | ^\n"
                          "     = did you mean 'size'?"));
    EXPECT_THAT(said("zebra = 1\n", [](TableReader&) {}), HasSubstr("known here: name, size, mode"));
}

TEST(TableReader, AnAbsentKeyIsNoMistakeUnlessItIsRequired) {
    EXPECT_EQ(said("",
                   [](TableReader& table) {
                       EXPECT_FALSE(table.text("name", "\"a\""));
                       EXPECT_FALSE(table.number("size", "1"));
                       EXPECT_FALSE(table.boolean("mode", "true"));
                       EXPECT_FALSE(table.size("size", "\"4M\""));
                       EXPECT_FALSE(table.file_mode("mode"));
                   }),
              "nothing");
    EXPECT_THAT(said("", [](TableReader& table) { EXPECT_EQ(table.required_text("name", "\"a\""), ""); }),
                HasSubstr("'name' is missing"));
    EXPECT_THAT(said("", [](TableReader& table) { EXPECT_FALSE(table.required_size("size", "\"4M\"")); }),
                HasSubstr("write size = \"4M\""));
}

TEST(TableReader, AWrongKindIsSaidAtTheValue) {
    EXPECT_THAT(said("name = 7\n", [](TableReader& table) { EXPECT_FALSE(table.text("name", "\"a\"")); }),
                HasSubstr("f.toml:1:8: error: 'name' is a number where a text belongs"));
    EXPECT_THAT(
        said("name = \"\"\n", [](TableReader& table) { EXPECT_FALSE(table.boolean("name", "true")); }),
        HasSubstr("'name' is a text where true or false belongs"));
    EXPECT_THAT(said("size = -1\n", [](TableReader& table) { EXPECT_FALSE(table.size("size", "\"4M\"")); }),
                HasSubstr("'size' is negative"));
    EXPECT_THAT(
        said("size = \"4Q\"\n", [](TableReader& table) { EXPECT_FALSE(table.size("size", "\"4M\"")); }),
        HasSubstr("write size = \"4M\""));
    EXPECT_THAT(
        said("name = \"a\\u0000\"\n", [](TableReader& table) { EXPECT_FALSE(table.text("name", "\"a\"")); }),
        HasSubstr("contains a NUL"));
}

TEST(TableReader, ANumberIsTakenUpToItsBounds) {
    const auto within = [](const std::string& text) {
        return said(text, [](TableReader& table) { (void)table.number_within("size", 2, 4, "3"); });
    };
    EXPECT_EQ(within("size = 2\n"), "nothing");
    EXPECT_EQ(within("size = 4\n"), "nothing");
    EXPECT_THAT(within("size = 1\n"), HasSubstr("1 is outside of 2 to 4"));
    EXPECT_THAT(within("size = 5\n"), HasSubstr("5 is outside of 2 to 4"));
}

TEST(TableReader, AModeIsOctalDigits) {
    EXPECT_EQ(
        said("mode = \"0777\"\n", [](TableReader& table) { EXPECT_EQ(table.file_mode("mode"), 0777U); }),
        "nothing");
    for (const char* mode : {"1000", "8", "", "07x"})
        EXPECT_THAT(said(std::string{"mode = \""} + mode + "\"\n",
                         [](TableReader& table) { EXPECT_FALSE(table.file_mode("mode")); }),
                    HasSubstr("octal"))
            << mode;
}

TEST(TableReader, AWordIsOneOfThoseThatAreKnown) {
    constexpr std::array<std::string_view, 2> words{"warm", "cold"};
    EXPECT_EQ(
        said("name = \"cold\"\n", [&](TableReader& table) { EXPECT_EQ(table.word("name", words), "cold"); }),
        "nothing");
    EXPECT_THAT(
        said("name = \"hot\"\n", [&](TableReader& table) { EXPECT_FALSE(table.word("name", words)); }),
        HasSubstr("write \"warm\" or \"cold\""));
}

TEST(TableReader, AnIdentityIsWhatTheLookUpKnows) {
    const auto look_up = [](const std::string& word) -> Result<std::uint32_t> {
        if (word == "qemu" || word == "64") return 64;
        return Error{Errc::not_found, "no user '" + word + "'"};
    };
    const auto identity = [&](const std::string& text) {
        return said(text, [&](TableReader& table) {
            EXPECT_EQ(table.identity(*table.find("name"), look_up).value_or(64), 64U);
        });
    };
    EXPECT_EQ(identity("name = \"qemu\"\n"), "nothing");
    EXPECT_EQ(identity("name = 64\n"), "nothing");
    EXPECT_THAT(identity("name = \"other\"\n"), HasSubstr("no user 'other'"));
    EXPECT_THAT(identity("name = true\n"), HasSubstr("a yes/no where a name or a number belongs"));
    EXPECT_THAT(identity("name = -1\n"), HasSubstr("where a name or a number belongs"));
}

TEST(TableReader, TablesOfAListAreReadUpToTheLimit) {
    std::vector<std::int64_t> seen;
    const auto read = [&](const std::string& text) {
        seen.clear();
        return said(text, [&](TableReader& table) {
            table.for_each_table("name", 2, "take fewer",
                                 [&](const TomlNode& node) { seen.push_back(node.find("x")->number); });
        });
    };
    EXPECT_EQ(read("[[name]]\nx = 1\n[[name]]\nx = 2\n"), "nothing");
    EXPECT_THAT(seen, ElementsAre(1, 2));
    EXPECT_EQ(read("[name]\nx = 3\n"), "nothing");
    EXPECT_THAT(seen, ElementsAre(3));
    EXPECT_THAT(read("name = [{x = 1}, {x = 2}, {x = 3}]\n"), HasSubstr("more than 2 of 'name'"));
    EXPECT_THAT(seen, ElementsAre(1, 2));
    EXPECT_THAT(read("name = [1]\n"), HasSubstr("a number where a table belongs"));
    EXPECT_THAT(read("name = 1\n"), HasSubstr("write [[name]]"));
}

TEST(TableReader, ValuesOfAListAreReadInTheirOrder) {
    std::vector<std::int64_t> seen;
    EXPECT_EQ(said("size = [3, 1]\n",
                   [&](TableReader& table) {
                       table.for_each("size", "[1]",
                                      [&](const TomlNode& node) { seen.push_back(node.number); });
                   }),
              "nothing");
    EXPECT_THAT(seen, ElementsAre(3, 1));
    EXPECT_THAT(
        said("size = 3\n", [](TableReader& table) { table.for_each("size", "[1]", [](const TomlNode&) {}); }),
        HasSubstr("'size' is not a list"));
}

}  // namespace
}  // namespace guestmem
