// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/capture_rules.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "guestmem/sys/kernel_text.hpp"

namespace guestmem::dma {

std::string inner_target(std::string_view target) {
    for (;;) {
        if (target.starts_with('/')) {
            target.remove_prefix(1);
        } else if (target.starts_with("../")) {
            target.remove_prefix(3);
        } else {
            return std::string{target};
        }
    }
}

std::string memory_total_line(std::string_view meminfo) {
    const auto value = value_of_line(meminfo, "MemTotal:");
    return value ? fmt::format("MemTotal: {}\n", *value) : "";
}

bool is_kept_word(std::string_view word) {
    if (word.starts_with('"')) word.remove_prefix(1);
    return std::ranges::any_of(kept_beginnings,
                               [&](std::string_view beginning) { return word.starts_with(beginning); });
}

std::string kept_words(std::string_view command_line) {
    std::string kept;
    while (!command_line.empty()) {
        const std::size_t word_bytes = std::min(command_line.find_first_of(" \t\n"), command_line.size());
        const std::string_view word = command_line.substr(0, word_bytes);
        command_line.remove_prefix(std::min(word_bytes + 1, command_line.size()));
        // Behind "--" are the arguments of init.
        if (word == "--") break;
        if (is_kept_word(word)) kept += fmt::format("{}{}", kept.empty() ? "" : " ", word);
    }
    return kept;
}

}  // namespace guestmem::dma
