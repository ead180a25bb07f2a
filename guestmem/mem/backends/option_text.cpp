// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/backends/option_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <variant>
#include <vector>

#include "guestmem/base/diagnostic.hpp"
#include "guestmem/mem/backends/size_text.hpp"

namespace guestmem {

namespace {

using Nodes = std::vector<std::uint16_t>;

/// Where a property goes; the type says how it is written.
using Member =
    std::variant<bool BackendOptions::*, std::optional<bool> BackendOptions::*, Rom BackendOptions::*,
                 HostPolicy BackendOptions::*, std::string BackendOptions::*, std::uint64_t BackendOptions::*,
                 Nodes BackendOptions::*>;

/// How a number is read.
enum class Unit : std::uint8_t { none, bytes };

constexpr unsigned only(BackendKind kind) { return 1U << static_cast<unsigned>(kind); }
constexpr unsigned all = ~0U;
constexpr unsigned ordinary = all & ~only(BackendKind::physical);
constexpr unsigned in_file = only(BackendKind::file);
constexpr unsigned in_memfd = only(BackendKind::memfd);
constexpr unsigned with_path = in_file | only(BackendKind::physical);

struct Property {
    std::string_view name;
    unsigned kinds;
    Member member;
    Unit unit = Unit::none;
};

/// In the order in which they are printed.
constexpr std::array<Property, 20> properties{{
    {"id", all, &BackendOptions::id},
    {"size", all, &BackendOptions::size_bytes, Unit::bytes},
    {"mem-path", with_path, &BackendOptions::mem_path},
    {"offset", with_path, &BackendOptions::offset_bytes, Unit::bytes},
    {"align", in_file, &BackendOptions::align_bytes, Unit::bytes},
    {"share", all, &BackendOptions::is_shared},
    {"readonly", with_path, &BackendOptions::is_readonly},
    {"rom", with_path, &BackendOptions::rom},
    {"hugetlb", in_memfd, &BackendOptions::is_huge},
    {"hugetlbsize", in_memfd, &BackendOptions::huge_page_bytes, Unit::bytes},
    {"seal", in_memfd, &BackendOptions::is_sealed},
    {"discard-data", in_file, &BackendOptions::is_discarded},
    {"pmem", in_file, &BackendOptions::is_persistent},
    {"prealloc", ordinary, &BackendOptions::is_prealloc},
    {"prealloc-threads", ordinary, &BackendOptions::prealloc_threads},
    {"reserve", ordinary, &BackendOptions::is_reserved},
    {"merge", all, &BackendOptions::is_mergeable},
    {"dump", all, &BackendOptions::is_dumped},
    {"host-nodes", ordinary, &BackendOptions::host_nodes},
    {"policy", ordinary, &BackendOptions::policy},
}};

/// QEMU's properties that no backend here has, with the reason.
constexpr std::array<std::pair<std::string_view, std::string_view>, 2> foreign_properties{{
    {"x-use-canonical-path-for-ramblock-id", "it names blocks of QEMU's migration stream"},
    {"prealloc-context", "it names another QEMU object; prealloc-threads says how many threads there are"},
}};

constexpr std::array<std::string_view, 3> rom_words{"auto", "on", "off"};
constexpr std::array<std::string_view, 4> policy_words{"default", "preferred", "bind", "interleave"};

std::optional<bool> to_flag(std::string_view text) {
    for (const std::string_view yes : {"on", "yes", "true", "y"})
        if (text == yes) return true;
    for (const std::string_view no : {"off", "no", "false", "n"})
        if (text == no) return false;
    return std::nullopt;
}

std::string joined(std::span<const std::string_view> words) {
    return fmt::format("{}", fmt::join(words, ", "));
}

/// One property=value of the text.
struct Item {
    std::string key;
    std::optional<std::string> value;
    std::size_t key_at = 0;
    std::size_t value_at = 0;
};

class Reader {
public:
    explicit Reader(std::string_view text) : text_(text), found_("backend", std::string{text}) {}

    Result<BackendOptions> read() {
        std::size_t at = 0;
        const Item type = next_item(at);
        if (!read_type(type)) return found_.to_error();
        while (at < text_.size()) read_property(next_item(at));
        if (options_.id.empty() && !said_.contains("id"))
            complain(text_.size(), "a backend needs an id", "add id=NAME");
        if (!said_.contains("size"))
            complain(text_.size(), "a backend needs a size", "add size=1G, or what it is to have");
        if (!found_.is_empty()) return found_.to_error();
        return options_;
    }

private:
    void complain(std::size_t at, std::string message, std::string advice = {}) {
        std::size_t column = 1;
        for (const char c : text_.substr(0, at)) column += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
        found_.add({1, column}, std::move(message), std::move(advice));
    }

    /// The item from `at` on; `at` goes behind its comma.
    Item next_item(std::size_t& at) const {
        Item item{.key = {}, .value = std::nullopt, .key_at = at, .value_at = at};
        for (; at < text_.size(); ++at) {
            const char c = text_[at];
            if (c == ',') {
                const bool is_doubled = item.value && at + 1 < text_.size() && text_[at + 1] == ',';
                if (!is_doubled) {
                    ++at;
                    break;
                }
                ++at;
            }
            if (c == '=' && !item.value) {
                item.value.emplace();
                item.value_at = at + 1;
            } else {
                (item.value ? *item.value : item.key) += c;
            }
        }
        return item;
    }

    bool read_type(const Item& item) {
        std::string_view name = item.key;
        if (item.value) {
            if (item.key != "qom-type") {
                complain(item.key_at, "the type of the backend comes first",
                         "begin with memory-backend-ram, -memfd, -shm, -file or -physical");
                return false;
            }
            name = *item.value;
        }
        std::vector<std::string_view> names;
        for (const BackendKindRow& row : backend_kinds) {
            names.push_back(row.name);
            if (row.name != name) continue;
            options_.kind = row.kind;
            return true;
        }
        const std::string_view meant = closest_word(name, names);
        complain(item.value ? item.value_at : item.key_at, fmt::format("no backend '{}'", name),
                 meant.empty() ? "there are: " + joined(names) : fmt::format("did you mean {}?", meant));
        return false;
    }

    void read_property(const Item& item) {
        const auto* const property =
            std::ranges::find(properties, std::string_view{item.key}, &Property::name);
        if (property != properties.end() && (property->kinds & only(options_.kind)) != 0) {
            std::visit([&](auto member) { read_value(*property, member, item); }, property->member);
            return;
        }
        if (!item.value && item.key.starts_with("no")) {
            const auto* const negated =
                std::ranges::find(properties, std::string_view{item.key}.substr(2), &Property::name);
            if (negated != properties.end() && (negated->kinds & only(options_.kind)) != 0) {
                Item off = item;
                off.key = negated->name;
                off.value = "off";
                std::visit([&](auto member) { read_value(*negated, member, off); }, negated->member);
                return;
            }
        }
        complain_about_key(item, property != properties.end() ? property->kinds : 0);
    }

    void complain_about_key(const Item& item, unsigned kinds) {
        const std::string_view type = row_of(options_.kind).name;
        for (const auto& [name, why] : foreign_properties)
            if (name == item.key)
                return complain(item.key_at, fmt::format("'{}' is QEMU's own: {}", name, why),
                                "leave it out");
        std::vector<std::string_view> others;
        for (const BackendKindRow& row : backend_kinds)
            if ((kinds & only(row.kind)) != 0) others.push_back(row.name);
        if (!others.empty())
            return complain(item.key_at, fmt::format("{} has no '{}'", type, item.key),
                            fmt::format("{} has", joined(others)));
        std::vector<std::string_view> known;
        for (const Property& property : properties)
            if ((property.kinds & only(options_.kind)) != 0) known.push_back(property.name);
        const std::string_view meant = closest_word(item.key, known);
        complain(
            item.key_at,
            item.key.empty() ? "a property is missing here" : fmt::format("{} has no '{}'", type, item.key),
            meant.empty() ? "it has: " + joined(known) : fmt::format("did you mean {}?", meant));
    }

    /// Puts a value in its place, once.
    template <typename T, typename Value>
    void put(const Property& property, T BackendOptions::* member, Value value, const Item& item) {
        if (!said_.insert(property.name).second && options_.*member != T{value})
            return complain(item.key_at, fmt::format("'{}' is said twice, and not the same", property.name),
                            "leave one of them out");
        options_.*member = std::move(value);
    }

    template <typename T>
    void read_value(const Property& property, T BackendOptions::* member, const Item& item) {
        if constexpr (std::is_same_v<T, bool> || std::is_same_v<T, std::optional<bool>>) {
            // A flag that stands alone is on.
            const std::optional<bool> flag = to_flag(item.value.value_or("on"));
            if (!flag)
                return complain(item.value_at, fmt::format("'{}' is neither on nor off", *item.value),
                                "write on or off");
            put(property, member, *flag, item);
        } else if (!item.value) {
            complain(item.key_at, fmt::format("'{}' needs a value", property.name),
                     fmt::format("write {}=...", property.name));
        } else if constexpr (std::is_same_v<T, std::string>) {
            read_text(property, member, item);
        } else if constexpr (std::is_same_v<T, Rom>) {
            read_word(property, member, item, rom_words);
        } else if constexpr (std::is_same_v<T, HostPolicy>) {
            read_word(property, member, item, policy_words);
        } else if constexpr (std::is_same_v<T, Nodes>) {
            read_nodes(item);
        } else {
            read_number(property, member, item);
        }
    }

    void read_text(const Property& property, std::string BackendOptions::* member, const Item& item) {
        const std::string& value = *item.value;
        if (value.find('\0') != std::string::npos)
            return complain(item.value_at, fmt::format("'{}' has a NUL byte", property.name));
        if (property.name == "id") {
            const auto is_good = [](char c) {
                return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       c == '-' || c == '.' || c == '_';
            };
            const bool begins = !value.empty() && ((value[0] >= 'a' && value[0] <= 'z') ||
                                                   (value[0] >= 'A' && value[0] <= 'Z'));
            if (!begins || !std::ranges::all_of(value, is_good)) {
                said_.insert("id");
                return complain(item.value_at, fmt::format("id '{}' is no name", value),
                                "letters, digits, '-', '.', '_'; a letter first");
            }
        }
        put(property, member, value, item);
    }

    template <typename T, std::size_t count>
    void read_word(const Property& property, T BackendOptions::* member, const Item& item,
                   const std::array<std::string_view, count>& words) {
        std::string_view value = *item.value;
        const auto* const found = std::ranges::find(words, value);
        if (found == words.end())
            return complain(item.value_at, fmt::format("'{}' is no value of {}", value, property.name),
                            "there are: " + joined(words));
        put(property, member, static_cast<T>(found - words.begin()), item);
    }

    void read_number(const Property& property, std::uint64_t BackendOptions::* member, const Item& item) {
        const Result<std::uint64_t> number =
            property.unit == Unit::bytes ? parse_qemu_size(*item.value) : parse_qemu_number(*item.value);
        if (!number) {
            said_.insert(property.name);
            return complain(item.value_at, number.error().message());
        }
        if (member == &BackendOptions::prealloc_threads && *number == 0)
            return complain(item.value_at, "prealloc-threads is 0; somebody has to do it", "write 1 or more");
        if (member == &BackendOptions::prealloc_threads && !std::in_range<std::uint32_t>(*number))
            return complain(item.value_at, fmt::format("prealloc-threads is {}; it has 32 bits", *number));
        put(property, member, *number, item);
    }

    /// "3" or "0-3"; what is said again is added.
    void read_nodes(const Item& item) {
        const std::string_view value = *item.value;
        const std::size_t dash = value.find('-');
        const auto first = parse_qemu_number(value.substr(0, dash));
        const auto last = dash == std::string_view::npos ? first : parse_qemu_number(value.substr(dash + 1));
        if (!first || !last || *first > *last)
            return complain(item.value_at, fmt::format("'{}' is neither a node nor a range of nodes", value),
                            "as in host-nodes=0-3,host-nodes=5");
        if (*last >= max_host_nodes)
            return complain(item.value_at, fmt::format("there is no node {}", *last),
                            fmt::format("nodes are below {}", max_host_nodes));
        for (std::uint64_t node = *first; node <= *last; ++node)
            options_.host_nodes.push_back(static_cast<std::uint16_t>(node));
        std::ranges::sort(options_.host_nodes);
        const auto twice = std::ranges::unique(options_.host_nodes);
        options_.host_nodes.erase(twice.begin(), twice.end());
    }

    std::string_view text_;
    Diagnostics found_;
    BackendOptions options_;
    std::set<std::string_view> said_;
};

/// A value as it is written; nothing when it is the default.
class Writer {
public:
    explicit Writer(const BackendOptions& options) : options_(options), usual_{.kind = options.kind} {}

    [[nodiscard]] std::string write() {
        text_ = row_of(options_.kind).name;
        for (const Property& property : properties)
            if ((property.kinds & only(options_.kind)) != 0)
                std::visit([&](auto member) { write_value(property, member); }, property.member);
        return text_;
    }

private:
    void add(const Property& property, std::string_view value) {
        text_ += fmt::format(",{}=", property.name);
        for (const char c : value) text_.append(c == ',' ? 2 : 1, c);
    }

    template <typename T>
    void write_value(const Property& property, T BackendOptions::* member) {
        const T& value = options_.*member;
        // What has to be said is.
        if (value == usual_.*member && property.name != "size") return;
        if constexpr (std::is_same_v<T, bool>) {
            add(property, value ? "on" : "off");
        } else if constexpr (std::is_same_v<T, std::optional<bool>>) {
            add(property, *value ? "on" : "off");
        } else if constexpr (std::is_same_v<T, std::string>) {
            add(property, value);
        } else if constexpr (std::is_same_v<T, Rom>) {
            add(property, rom_words[static_cast<std::size_t>(value)]);
        } else if constexpr (std::is_same_v<T, HostPolicy>) {
            add(property, policy_words[static_cast<std::size_t>(value)]);
        } else if constexpr (std::is_same_v<T, Nodes>) {
            write_nodes(property, value);
        } else {
            add(property, property.unit == Unit::bytes ? format_qemu_size(value) : std::to_string(value));
        }
    }

    /// In ranges.
    void write_nodes(const Property& property, const Nodes& nodes) {
        for (std::size_t i = 0; i < nodes.size();) {
            std::size_t end = i + 1;
            while (end < nodes.size() && nodes[end] == nodes[end - 1] + 1) ++end;
            add(property,
                end == i + 1 ? std::to_string(nodes[i]) : fmt::format("{}-{}", nodes[i], nodes[end - 1]));
            i = end;
        }
    }

    const BackendOptions& options_;
    BackendOptions usual_;
    std::string text_;
};

}  // namespace

Result<BackendOptions> parse_backend(std::string_view text) {
    if (text.size() > max_backend_text_bytes)
        return Error{Errc::invalid_argument,
                     fmt::format("backend: the text has {} bytes, at most {} are read", text.size(),
                                 max_backend_text_bytes)};
    return Reader{text}.read();
}

std::string to_text(const BackendOptions& options) { return Writer{options}.write(); }

}  // namespace guestmem
