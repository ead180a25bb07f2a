// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string_view>

/// The characters of a text in UTF-8, one at a time.
///
/// Contract: count_bytes is 1 to 4 and never beyond the text, which is not empty. What is no UTF-8 (overlong forms,
/// surrogates and beyond U+10FFFF among it) is one byte with is_text false, and so is a control character that has no
/// place in a configuration: C0 without tab, newline and carriage return, DEL, C1 of U+0080 to U+009F.
/// Threads: any.

namespace guestmem::vmm {

struct Character {
    std::size_t count_bytes = 1;
    bool is_utf8 = true;
    bool is_text = true;
};

[[nodiscard]] Character first_character(std::string_view text);

}  // namespace guestmem::vmm
