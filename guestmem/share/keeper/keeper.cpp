// SPDX-License-Identifier: Apache-2.0
#include "guestmem/share/keeper/keeper.hpp"

#include <fmt/format.h>

#include <charconv>

namespace guestmem::share {
namespace {

/// In the order of KeptKind.
constexpr std::string_view kind_letters = "jlmpsdcb";

std::optional<std::uint32_t> parse_number(std::string_view text) {
    std::uint32_t number = 0;
    constexpr int hexadecimal = 16;
    const char* const past = text.data() + text.size();
    const auto [rest, status] = std::from_chars(text.data(), past, number, hexadecimal);
    if (status != std::errc{} || rest != past) return std::nullopt;
    return number;
}

}  // namespace

std::string to_name(const KeptKey& key) {
    return fmt::format("{}{:x}.{:x}", kind_letters.at(static_cast<std::size_t>(key.kind)), key.share,
                       key.index);
}

std::optional<KeptKey> parse_kept_name(std::string_view name) {
    if (name.empty() || name.size() > max_kept_name_bytes) return std::nullopt;
    const std::size_t kind = kind_letters.find(name.front());
    const std::size_t dot = name.find('.');
    if (kind == std::string_view::npos || dot == std::string_view::npos) return std::nullopt;
    const auto share = parse_number(name.substr(1, dot - 1));
    const auto index = parse_number(name.substr(dot + 1));
    if (!share || !index) return std::nullopt;
    const KeptKey key{.kind = static_cast<KeptKind>(kind), .share = *share, .index = *index};
    // One key, one name: no leading zeros, no upper case.
    if (to_name(key) != name) return std::nullopt;
    return key;
}

}  // namespace guestmem::share
