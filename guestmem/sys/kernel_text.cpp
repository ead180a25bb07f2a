// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/kernel_text.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <charconv>
#include <limits>

#include "guestmem/sys/fd.hpp"

namespace guestmem {
namespace {

constexpr std::string_view blanks = " \t\n";

std::string_view trimmed(std::string_view text) {
    const std::size_t first = text.find_first_not_of(blanks);
    if (first == std::string_view::npos) return {};
    return text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

}  // namespace

std::optional<std::uint64_t> parse_kernel_number(std::string_view text) {
    const std::string_view digits = trimmed(text);
    std::uint64_t number = 0;
    const auto [rest, status] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    if (status != std::errc{} || rest != digits.data() + digits.size()) return std::nullopt;
    return number;
}

std::optional<std::string_view> value_of_line(std::string_view text, std::string_view key) {
    while (!text.empty()) {
        const std::string_view line = text.substr(0, text.find('\n'));
        if (line.starts_with(key) && (line.size() == key.size() || blanks.contains(line[key.size()])))
            return trimmed(line.substr(key.size()));
        text.remove_prefix(line.size() < text.size() ? line.size() + 1 : line.size());
    }
    return std::nullopt;
}

std::optional<std::uint64_t> meminfo_bytes(std::string_view text, std::string_view key) {
    const auto value = value_of_line(text, key);
    constexpr std::string_view unit = " kB";
    if (!value || !value->ends_with(unit)) return std::nullopt;
    const auto kib = parse_kernel_number(value->substr(0, value->size() - unit.size()));
    if (!kib || *kib > std::numeric_limits<std::uint64_t>::max() / 1024) return std::nullopt;
    return *kib * 1024;
}

Result<std::optional<std::string>> read_if_there(const std::string& path, std::size_t limit_bytes) {
    auto text = read_text_file(path, limit_bytes);
    if (text) return std::optional{std::move(text).value()};
    if (text.error().os_error() == ENOENT) return std::optional<std::string>{};
    return std::move(text).error();
}

Result<std::uint64_t> read_kernel_number(const std::string& path) {
    const std::string text = GM_TRY(read_text_file(path, max_kernel_number_bytes));
    if (const auto number = parse_kernel_number(text)) return *number;
    return unexpected_text(path, text, "a number");
}

Error unexpected_text(const std::string& path, std::string_view text, std::string_view wanted) {
    constexpr std::size_t max_shown = 40;
    std::string shown{trimmed(text).substr(0, max_shown)};
    for (char& letter : shown)
        if (letter < ' ' || letter > '~') letter = '?';
    return Error{Errc::corrupt, fmt::format("{}: '{}' is not {}", path, shown, wanted)};
}

}  // namespace guestmem
