// SPDX-License-Identifier: Apache-2.0
#include "guestmem/base/sizes.hpp"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <charconv>
#include <limits>
#include <ranges>

namespace guestmem {
namespace {

struct Unit {
    char letter;
    unsigned shift;
};
constexpr std::array<Unit, 4> units{{{'K', 10}, {'M', 20}, {'G', 30}, {'T', 40}}};

constexpr char to_upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; }

}  // namespace

Result<std::uint64_t> parse_size(std::string_view text) {
    const auto refuse = [&](std::string_view why) {
        return Error{Errc::invalid_argument,
                     fmt::format("size '{}': {}; write a number with K, M, G or T, as in 4M", text, why)};
    };
    std::uint64_t number = 0;
    const auto [rest, status] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (status == std::errc::invalid_argument) return refuse("does not start with a number");
    if (status == std::errc::result_out_of_range) return refuse("is beyond 2^64 bytes");

    std::string_view suffix = text.substr(static_cast<std::size_t>(rest - text.data()));
    if (suffix.empty() || suffix == "B") return number;
    for (const Unit& unit : units) {
        if (to_upper(suffix.front()) != unit.letter) continue;
        const std::string_view tail = suffix.substr(1);
        if (!tail.empty() && tail != "iB" && tail != "B") break;
        if (number > (std::numeric_limits<std::uint64_t>::max() >> unit.shift))
            return refuse("is beyond 2^64 bytes");
        return number << unit.shift;
    }
    return refuse(fmt::format("unknown unit '{}'", suffix));
}

std::string format_size(std::uint64_t size_bytes) {
    for (const Unit& unit : std::views::reverse(units))
        if (size_bytes != 0 && (size_bytes & ((std::uint64_t{1} << unit.shift) - 1)) == 0)
            return fmt::format("{}{}", size_bytes >> unit.shift, unit.letter);
    return fmt::format("{}", size_bytes);
}

std::optional<std::uint64_t> round_up(std::uint64_t value, std::uint64_t granule) {
    GM_CHECK(std::has_single_bit(granule));
    const std::uint64_t missing = (granule - value % granule) % granule;
    if (missing > std::numeric_limits<std::uint64_t>::max() - value) return std::nullopt;
    return value + missing;
}

std::optional<std::uint64_t> round_up_to_power_of_two(std::uint64_t value) {
    if (value > (std::uint64_t{1} << 63)) return std::nullopt;
    return std::bit_ceil(value);
}

}  // namespace guestmem
