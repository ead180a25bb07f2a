// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/numbers.hpp"

#include <fmt/format.h>

#include <charconv>
#include <limits>
#include <system_error>

namespace guestmem::vmm {
namespace {

constexpr std::string_view units = "KMGT";
constexpr std::string_view forms = "write a number such as 4096, 0x1000, 64K or 192M";

/// How far a unit shifts a number to the left; 0 for a character that is none.
unsigned shift_of(char unit) {
    const char upper = unit >= 'a' && unit <= 'z' ? static_cast<char>(unit - 'a' + 'A') : unit;
    const std::size_t at = units.find(upper);
    return at == std::string_view::npos ? 0 : 10U * static_cast<unsigned>(at + 1);
}

TextProblem too_large(std::string_view text) {
    return {fmt::format("{} is beyond 2^64 - 1", text), "write a smaller number"};
}

}  // namespace

std::expected<std::uint64_t, TextProblem> read_number(std::string_view text) {
    const bool is_hexadecimal = text.starts_with("0x") || text.starts_with("0X");
    std::string_view digits = is_hexadecimal ? text.substr(2) : text;
    const unsigned shift = !is_hexadecimal && !digits.empty() ? shift_of(digits.back()) : 0;
    if (shift != 0) digits.remove_suffix(1);
    const std::string_view allowed = is_hexadecimal ? "0123456789abcdefABCDEF" : "0123456789";
    if (digits.empty() || digits.find_first_not_of(allowed) != std::string_view::npos)
        return std::unexpected(TextProblem{fmt::format("'{}' is no number", text), std::string{forms}});
    if (!is_hexadecimal && digits.size() > 1 && digits.front() == '0')
        return std::unexpected(TextProblem{fmt::format("'{}' begins with 0: octal or decimal?", text),
                                           "leave the 0 out, or write 0x before a hexadecimal number"});
    std::uint64_t number = 0;
    const auto result =
        std::from_chars(digits.data(), digits.data() + digits.size(), number, is_hexadecimal ? 16 : 10);
    if (result.ec != std::errc{} || number > std::numeric_limits<std::uint64_t>::max() >> shift)
        return std::unexpected(too_large(text));
    return number << shift;
}

std::string write_address(std::uint64_t address) { return fmt::format("{:#x}", address); }

std::string write_length(std::uint64_t length_bytes) {
    for (std::size_t at = units.size(); at > 0; --at) {
        const unsigned shift = 10U * static_cast<unsigned>(at);
        const std::uint64_t count = length_bytes >> shift;
        if (count != 0 && count << shift == length_bytes) return fmt::format("{}{}", count, units[at - 1]);
    }
    return fmt::format("{}", length_bytes);
}

}  // namespace guestmem::vmm
