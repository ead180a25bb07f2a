// SPDX-License-Identifier: Apache-2.0
#include "guestmem/base/toml_tree.hpp"

#include <gmock/gmock.h>

#include <optional>
#include <string>

namespace guestmem {
namespace {

using ::testing::HasSubstr;

std::string complaint(const std::string& text) {
    Diagnostics diagnostics{"f.toml", text};
    const auto root = parse_toml(text, diagnostics);
    EXPECT_EQ(root.has_value(), diagnostics.is_empty());
    return diagnostics.is_empty() ? "none" : diagnostics.to_text();
}

TomlNode parsed(const std::string& text) {
    Diagnostics diagnostics{"f.toml", text};
    auto root = parse_toml(text, diagnostics);
    EXPECT_TRUE(root) << diagnostics.to_text();
    return root ? *std::move(root) : TomlNode{};
}

TEST(TomlTree, EveryKindOfValueArrivesWithItsPlace) {
    const TomlNode root = parsed(
        "text = \"a\"\nnumber = -7\nyes = true\nhalf = 0.5\nday = 2020-01-02\nlist = [1, \"b\"]\n[table]\n  x = 1\n");
    ASSERT_EQ(root.children.size(), 7U);
    EXPECT_EQ(root.find("text")->text, "a");
    EXPECT_EQ(root.find("number")->number, -7);
    EXPECT_TRUE(root.find("yes")->is_true);
    EXPECT_EQ(root.find("half")->kind, TomlKind::fraction);
    EXPECT_EQ(root.find("day")->kind, TomlKind::date);
    const TomlNode* list = root.find("list");
    ASSERT_EQ(list->children.size(), 2U);
    EXPECT_EQ(list->children[1].text, "b");
    EXPECT_EQ(list->children[1].where.line, 6U);
    EXPECT_EQ(list->children[1].where.column, 12U);
    const TomlNode* x = root.find("table")->find("x");
    ASSERT_NE(x, nullptr);
    EXPECT_EQ(x->where.line, 8U);
    EXPECT_EQ(x->where.column, 7U);
    EXPECT_EQ(x->key_where.column, 3U);
}

TEST(TomlTree, WhatIsNotThereIsNotFound) {
    const TomlNode root = parsed("list = [1]\n");
    EXPECT_EQ(root.find("other"), nullptr);
    EXPECT_EQ(root.find("list")->find("list"), nullptr);
    EXPECT_TRUE(parsed("").children.empty());
}

TEST(TomlTree, ASyntaxErrorHasItsPlace) {
    EXPECT_THAT(complaint("a = 1\nb = = 2\n"), HasSubstr("f.toml:2:5: error: "));
    EXPECT_THAT(complaint("[[["), HasSubstr("f.toml:1:"));
    EXPECT_THAT(complaint(std::string{"a\0", 2}), HasSubstr("f.toml:1:"));
}

TEST(TomlTree, LevelsUpToTheLimitArriveAndOneMoreIsSaidOnce) {
    // The root is level 0.
    const auto nested = [](std::size_t depth) {
        return "a = " + std::string(depth, '[') + std::string(depth, ']') + "\n";
    };
    EXPECT_EQ(complaint(nested(max_toml_depth - 1)), "none");
    EXPECT_EQ(complaint(nested(max_toml_depth)), "none");
    const std::string said = complaint(nested(max_toml_depth + 1) + "b" + nested(max_toml_depth + 2));
    EXPECT_THAT(said, HasSubstr("more than 32 levels"));
    EXPECT_EQ(said.find("levels"), said.rfind("levels"));
}

TEST(TomlTree, DotsUpToTheLimitArriveAndOneMoreIsAnError) {
    EXPECT_EQ(complaint("a = \"" + std::string(max_dots_in_line, '.') + "\"\n"), "none");
    EXPECT_THAT(complaint("a = \"" + std::string(max_dots_in_line + 1, '.') + "\"\n"),
                HasSubstr("more than 128 dots"));
}

TEST(TomlTree, KindsAreNamedAsASentenceHasThem) {
    for (const TomlKind kind : {TomlKind::table, TomlKind::list, TomlKind::text, TomlKind::number,
                                TomlKind::fraction, TomlKind::boolean, TomlKind::date})
        EXPECT_THAT(std::string{to_string(kind)}, HasSubstr("a ")) << static_cast<int>(kind);
}

}  // namespace
}  // namespace guestmem
