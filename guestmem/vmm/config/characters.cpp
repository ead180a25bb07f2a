// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/config/characters.hpp"

#include <cstdint>

namespace guestmem::vmm {
namespace {

std::size_t length_by(unsigned char first) {
    if (first < 0x80) return 1;
    if (first < 0xc2) return 0;
    if (first < 0xe0) return 2;
    if (first < 0xf0) return 3;
    return first < 0xf5 ? 4 : 0;
}

}  // namespace

Character first_character(std::string_view text) {
    const auto byte = [&](std::size_t at) { return static_cast<unsigned char>(text[at]); };
    const Character no_character{.count_bytes = 1, .is_utf8 = false, .is_text = false};
    if (text.empty()) return no_character;
    const std::size_t length = length_by(byte(0));
    if (length == 0 || length > text.size()) return no_character;
    std::uint32_t code = length == 1 ? byte(0) : byte(0) & (0x7fU >> length);
    for (std::size_t at = 1; at < length; ++at) {
        if ((byte(at) & 0xc0U) != 0x80) return no_character;
        code = (code << 6) | (byte(at) & 0x3fU);
    }
    const bool is_overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
    if (is_overlong || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) return no_character;
    const bool is_break = code == '\t' || code == '\n' || code == '\r';
    const bool is_control = (code < ' ' && !is_break) || (code >= 0x7f && code <= 0x9f);
    return {.count_bytes = length, .is_utf8 = true, .is_text = !is_control};
}

}  // namespace guestmem::vmm
