// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/diagnostic.hpp"

/// A TOML text as a plain tree with places.
///
/// Concepts: a node is a table, a list or a value. A table's children have their keys; their order is that of the
/// keys' bytes, a list's that of the text.
/// Contract: any text gives a tree or a mistake with its place (a syntax error hides what follows it). No text ends
/// the program, whatever the parser under it thinks of it. Positions are those of Diagnostics.
/// Limits: max_toml_depth levels, and max_dots_in_line (the parser makes a table of each dot of a key, and takes them
/// apart by recursion).
/// Threads: any; plain values.

namespace guestmem {

inline constexpr std::size_t max_toml_depth = 32;
inline constexpr std::size_t max_dots_in_line = 128;

enum class TomlKind : std::uint8_t { table, list, text, number, fraction, boolean, date };
/// As a sentence has it: "a table", "a yes/no".
[[nodiscard]] std::string_view to_string(TomlKind kind);

struct TomlNode {
    TomlKind kind = TomlKind::table;
    TextPosition where = {};
    std::string key = {};         ///< in a table
    TextPosition key_where = {};  ///< in a table
    std::string text = {};
    std::int64_t number = 0;
    bool is_true = false;
    std::vector<TomlNode> children = {};

    /// Of a table; nullptr when there is none.
    [[nodiscard]] const TomlNode* find(std::string_view name) const;
};

/// Nothing, and a mistake in `diagnostics`, when it is not TOML.
[[nodiscard]] std::optional<TomlNode> parse_toml(std::string_view text, Diagnostics& diagnostics);

}  // namespace guestmem
