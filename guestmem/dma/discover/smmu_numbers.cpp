// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/smmu_numbers.hpp"

#include <fmt/format.h>

#include <charconv>
#include <limits>

namespace guestmem::dma {
namespace {

/// 0 for no suffix.
unsigned suffix_shift(char c) {
    switch (c) {
        case 'k':
        case 'K': return 10;
        case 'm':
        case 'M': return 20;
        case 'g':
        case 'G': return 30;
        default: return 0;
    }
}

}  // namespace

Result<std::uint64_t> parse_smmu_number(std::string_view text, NumberStyle style) {
    const std::string_view whole = text;
    int base = style == NumberStyle::address ? 16 : 10;
    // Lower case by one bit: 'X' is 'x' without it.
    if (text.size() > 2 && text[0] == '0' && ((text[1] | 0x20) == 'x' || (text[1] | 0x20) == 'd')) {
        base = (text[1] | 0x20) == 'x' ? 16 : 10;
        text.remove_prefix(2);
    }
    unsigned shift = 0;
    if (style != NumberStyle::plain && !text.empty()) shift = suffix_shift(text.back());
    if (shift != 0) text.remove_suffix(1);
    std::uint64_t value = 0;
    const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (failure == std::errc::result_out_of_range ||
        (failure == std::errc{} && value > std::numeric_limits<std::uint64_t>::max() >> shift))
        return Error{Errc::out_of_range, fmt::format("'{}' does not fit into 64 bits", whole)};
    if (failure != std::errc{} || end != text.data() + text.size())
        return Error{Errc::invalid_argument,
                     fmt::format("'{}' is no {} number", whole, base == 16 ? "hexadecimal" : "decimal")};
    return value << shift;
}

}  // namespace guestmem::dma
