// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/backends/size_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>

namespace guestmem {

namespace {

constexpr std::string_view units = "BKMGTPE";
constexpr std::uint64_t max_value = std::numeric_limits<std::uint64_t>::max();

constexpr char to_upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; }

bool is_digit(char c) { return c >= '0' && c <= '9'; }

Error refuse(std::string_view text, std::string_view why) {
    return Error{Errc::invalid_argument, fmt::format("'{}' {}", text, why)};
}

/// The digits from the beginning on, and what follows them.
Result<std::uint64_t> take_digits(std::string_view text, std::string_view& rest, int base) {
    std::uint64_t number = 0;
    const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), number, base);
    if (status == std::errc::invalid_argument) return refuse(text, "does not begin with a digit");
    if (status == std::errc::result_out_of_range) return refuse(text, "is beyond 2^64");
    rest = text.substr(static_cast<std::size_t>(end - text.data()));
    return number;
}

bool is_hexadecimal(std::string_view text) { return text.starts_with("0x") || text.starts_with("0X"); }

/// floor(0.DIGITS * 2^shift): exact, whatever the number of digits.
std::uint64_t fraction_of(std::string_view digits, unsigned shift) {
    std::string remainder{digits};
    std::uint64_t result = 0;
    // Doubling 0.DIGITS gives one bit of it after the other.
    for (unsigned bit = 0; bit < shift; ++bit) {
        int carry = 0;
        for (std::size_t i = remainder.size(); i-- > 0;) {
            const int doubled = (remainder[i] - '0') * 2 + carry;
            remainder[i] = static_cast<char>('0' + doubled % 10);
            carry = doubled / 10;
        }
        result = result << 1 | static_cast<std::uint64_t>(carry);
    }
    return result;
}

}  // namespace

Result<std::uint64_t> parse_qemu_number(std::string_view text) {
    const bool is_hex = is_hexadecimal(text);
    std::string_view rest;
    const std::uint64_t number = GM_TRY(take_digits(text.substr(is_hex ? 2 : 0), rest, is_hex ? 16 : 10));
    if (!rest.empty()) return refuse(text, "is no number");
    return number;
}

Result<std::uint64_t> parse_qemu_size(std::string_view text) {
    if (is_hexadecimal(text)) return parse_qemu_number(text);
    std::string_view rest;
    const std::uint64_t whole = GM_TRY(take_digits(text, rest, 10));
    std::string_view fraction;
    if (rest.starts_with('.')) {
        const auto end = std::ranges::find_if_not(rest.substr(1), is_digit);
        fraction = rest.substr(1, static_cast<std::size_t>(end - rest.begin()) - 1);
        rest = rest.substr(fraction.size() + 1);
        if (fraction.empty()) return refuse(text, "has no digit behind its point");
    }
    if (rest.size() > 1) return refuse(text, "has an unknown unit; write B, K, M, G, T, P or E");
    const std::size_t unit = rest.empty() ? 0 : units.find(to_upper(rest.front()));
    if (unit == std::string_view::npos)
        return refuse(text, "has an unknown unit; write B, K, M, G, T, P or E");
    const unsigned shift = static_cast<unsigned>(unit) * 10;
    if (!fraction.empty() && shift == 0) return refuse(text, "is a fraction of a byte");
    if (whole > max_value >> shift) return refuse(text, "is beyond 2^64");
    const std::uint64_t part = fraction_of(fraction, shift);
    return (whole << shift) + part;
}

std::string format_qemu_size(std::uint64_t size_bytes) {
    std::size_t unit = 0;
    while (size_bytes != 0 && size_bytes % 1024 == 0 && unit + 1 < units.size()) {
        size_bytes /= 1024;
        ++unit;
    }
    return unit == 0 ? std::to_string(size_bytes) : fmt::format("{}{}", size_bytes, units[unit]);
}

}  // namespace guestmem
