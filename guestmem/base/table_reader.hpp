// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "guestmem/base/diagnostic.hpp"
#include "guestmem/base/result.hpp"
#include "guestmem/base/toml_tree.hpp"

/// Reads the keys of one table of a configuration file; what is wrong goes into the file's Diagnostics.
///
/// Concepts: the reader knows all keys that the table may have. Whatever else is there is a mistake, with the known
/// key that is closest. Each `example` is what a mistake advises to write behind `KEY = `.
/// Contract: a key that is absent gives nothing and no mistake, unless it is required; one with a wrong value gives
/// nothing and a mistake at the value. Texts have no NUL: names and paths go to the kernel as C strings.
/// Lifetime: the node and the diagnostics outlive the reader.
/// Threads: one at a time.
/// Example:
///     TableReader table{node, "[[share]]", known, diagnostics};
///     const std::string name = table.required_text("name", "\"mailbox\"");
///     if (const auto size = table.required_size("size", "\"4M\"")) ...

namespace guestmem {

class TableReader {
public:
    using Words = std::span<const std::string_view>;
    using LookUp = std::function<Result<std::uint32_t>(const std::string&)>;

    TableReader(const TomlNode& table, std::string_view what, Words known, Diagnostics& diagnostics);

    [[nodiscard]] const TomlNode* find(std::string_view key) const { return table_.find(key); }
    [[nodiscard]] bool has(std::string_view key) const { return find(key) != nullptr; }
    [[nodiscard]] TextPosition start() const { return table_.where; }
    /// Of the value; of the table when there is none.
    [[nodiscard]] TextPosition where(std::string_view key) const;
    void complain(std::string_view key, std::string message, std::string advice = {});
    [[nodiscard]] Diagnostics& diagnostics() { return diagnostics_; }

    std::optional<std::string> text(std::string_view key, std::string_view example);
    /// Empty when it is missing or wrong.
    std::string required_text(std::string_view key, std::string_view example);
    std::optional<bool> boolean(std::string_view key, std::string_view example);
    std::optional<std::uint64_t> number(std::string_view key, std::string_view example);
    std::optional<std::uint64_t> number_within(std::string_view key, std::uint64_t least, std::uint64_t most,
                                               std::string_view example);
    /// A number of bytes, or a text such as "4M".
    std::optional<std::uint64_t> size(std::string_view key, std::string_view example);
    std::optional<std::uint64_t> required_size(std::string_view key, std::string_view example);
    /// Permissions of a file: a text of octal digits, 0777 at most.
    std::optional<std::uint32_t> file_mode(std::string_view key);
    /// One of `known`; another word is a mistake, with the closest.
    std::optional<std::string> word(std::string_view key, Words known);
    /// What a value that names a user or a group by name or number is to `look_up`.
    std::optional<std::uint32_t> identity(const TomlNode& node, const LookUp& look_up);

    /// Each table of a list of tables; `[name]` counts as a list of one. What comes after `limit` is not read.
    void for_each_table(std::string_view key, std::size_t limit, std::string_view limit_advice,
                        const std::function<void(const TomlNode&)>& use);
    /// Each value of a list; anything else is a mistake.
    void for_each(std::string_view key, std::string_view example,
                  const std::function<void(const TomlNode&)>& use);

private:
    void complain_kind(const TomlNode& node, std::string_view key, std::string_view belongs,
                       std::string_view example);

    const TomlNode& table_;
    Diagnostics& diagnostics_;
};

}  // namespace guestmem
