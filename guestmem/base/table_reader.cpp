// SPDX-License-Identifier: Apache-2.0
#include "guestmem/base/table_reader.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "guestmem/base/sizes.hpp"

namespace guestmem {

TableReader::TableReader(const TomlNode& table, std::string_view what, Words known, Diagnostics& diagnostics)
    : table_(table), diagnostics_(diagnostics) {
    for (const TomlNode& child : table.children) {
        if (std::ranges::find(known, child.key) != known.end()) continue;
        const std::string_view meant = closest_word(child.key, known);
        diagnostics.add(child.key_where, fmt::format("unknown key '{}' in {}", child.key, what),
                        meant.empty() ? fmt::format("known here: {}", fmt::join(known, ", "))
                                      : fmt::format("did you mean '{}'?", meant));
    }
}

TextPosition TableReader::where(std::string_view key) const {
    const TomlNode* node = find(key);
    return node == nullptr ? start() : node->where;
}

void TableReader::complain(std::string_view key, std::string message, std::string advice) {
    diagnostics_.add(where(key), std::move(message), std::move(advice));
}

void TableReader::complain_kind(const TomlNode& node, std::string_view key, std::string_view belongs,
                                std::string_view example) {
    diagnostics_.add(node.where,
                     fmt::format("'{}' is {} where {} belongs", key, to_string(node.kind), belongs),
                     fmt::format("write {} = {}", key, example));
}

std::optional<std::string> TableReader::text(std::string_view key, std::string_view example) {
    const TomlNode* node = find(key);
    if (node == nullptr) return std::nullopt;
    if (node->kind != TomlKind::text) {
        complain_kind(*node, key, "a text", example);
        return std::nullopt;
    }
    if (node->text.find('\0') == std::string::npos) return node->text;
    complain(key, fmt::format("'{}' contains a NUL", key), fmt::format("write {} = {}", key, example));
    return std::nullopt;
}

std::string TableReader::required_text(std::string_view key, std::string_view example) {
    if (!has(key))
        diagnostics_.add(start(), fmt::format("'{}' is missing", key),
                         fmt::format("write {} = {}", key, example));
    return text(key, example).value_or(std::string{});
}

std::optional<bool> TableReader::boolean(std::string_view key, std::string_view example) {
    const TomlNode* node = find(key);
    if (node == nullptr) return std::nullopt;
    if (node->kind == TomlKind::boolean) return node->is_true;
    complain_kind(*node, key, "true or false", example);
    return std::nullopt;
}

std::optional<std::uint64_t> TableReader::number(std::string_view key, std::string_view example) {
    const TomlNode* node = find(key);
    if (node == nullptr) return std::nullopt;
    if (node->kind != TomlKind::number) {
        complain_kind(*node, key, "a number", example);
        return std::nullopt;
    }
    if (node->number >= 0) return static_cast<std::uint64_t>(node->number);
    complain(key, fmt::format("'{}' is negative", key), fmt::format("write {} = {}", key, example));
    return std::nullopt;
}

std::optional<std::uint64_t> TableReader::number_within(std::string_view key, std::uint64_t least,
                                                        std::uint64_t most, std::string_view example) {
    const auto value = number(key, example);
    if (!value || (*value >= least && *value <= most)) return value;
    complain(key, fmt::format("{} is outside of {} to {}", *value, least, most));
    return std::nullopt;
}

std::optional<std::uint64_t> TableReader::size(std::string_view key, std::string_view example) {
    const TomlNode* node = find(key);
    if (node == nullptr) return std::nullopt;
    if (node->kind != TomlKind::text) return number(key, example);
    auto parsed = parse_size(node->text);
    if (parsed) return *parsed;
    complain(key, parsed.error().message(), fmt::format("write {} = {}", key, example));
    return std::nullopt;
}

std::optional<std::uint64_t> TableReader::required_size(std::string_view key, std::string_view example) {
    if (!has(key))
        diagnostics_.add(start(), fmt::format("'{}' is missing", key),
                         fmt::format("write {} = {}", key, example));
    return size(key, example);
}

std::optional<std::uint32_t> TableReader::file_mode(std::string_view key) {
    const auto digits = text(key, "\"0660\"");
    if (!digits) return std::nullopt;
    std::uint32_t mode = 0;
    const char* const last = digits->data() + digits->size();
    const auto [rest, status] = std::from_chars(digits->data(), last, mode, 8);
    if (status == std::errc{} && rest == last && mode <= 0777) return mode;
    complain(key, fmt::format("mode '{}' is not three or four octal digits", *digits),
             fmt::format("write {} = \"0660\"", key));
    return std::nullopt;
}

std::optional<std::string> TableReader::word(std::string_view key, Words known) {
    const auto found = text(key, fmt::format("\"{}\"", known.front()));
    if (!found || std::ranges::find(known, *found) != known.end()) return found;
    complain(key, fmt::format("unknown {} '{}'", key, *found),
             fmt::format("write \"{}\"", fmt::join(known, "\" or \"")));
    return std::nullopt;
}

std::optional<std::uint32_t> TableReader::identity(const TomlNode& node, const LookUp& look_up) {
    std::string word;
    if (node.kind == TomlKind::number && node.number >= 0) word = std::to_string(node.number);
    if (node.kind == TomlKind::text) word = node.text;
    if (word.empty()) {
        diagnostics_.add(node.where, fmt::format("{} where a name or a number belongs", to_string(node.kind)),
                         "write a name of this host, as in \"qemu\", or its number");
        return std::nullopt;
    }
    auto id = look_up(word);
    if (id) return *id;
    diagnostics_.add(node.where, id.error().message(), "create it first, or name another");
    return std::nullopt;
}

void TableReader::for_each_table(std::string_view key, std::size_t limit, std::string_view limit_advice,
                                 const std::function<void(const TomlNode&)>& use) {
    const TomlNode* node = find(key);
    if (node == nullptr) return;
    if (node->kind == TomlKind::table) return use(*node);
    if (node->kind != TomlKind::list)
        return complain(key, fmt::format("'{}' is {} where tables belong", key, to_string(node->kind)),
                        fmt::format("write [[{}]]", key));
    std::size_t count = 0;
    for (const TomlNode& entry : node->children) {
        if (count++ == limit)
            return diagnostics_.add(entry.where, fmt::format("more than {} of '{}'", limit, key),
                                    std::string{limit_advice});
        if (entry.kind == TomlKind::table) {
            use(entry);
        } else {
            diagnostics_.add(entry.where, fmt::format("{} where a table belongs", to_string(entry.kind)),
                             fmt::format("write [[{}]]", key));
        }
    }
}

void TableReader::for_each(std::string_view key, std::string_view example,
                           const std::function<void(const TomlNode&)>& use) {
    const TomlNode* node = find(key);
    if (node == nullptr) return;
    if (node->kind != TomlKind::list)
        return complain(key, fmt::format("'{}' is not a list", key),
                        fmt::format("write {} = {}", key, example));
    for (const TomlNode& entry : node->children) use(entry);
}

}  // namespace guestmem
