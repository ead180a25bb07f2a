// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/report/words.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "guestmem/base/sizes.hpp"

namespace guestmem::dma {
namespace {

constexpr int most_page_sizes_shown = 4;

void add(std::string& text, std::string_view separator, std::string_view part) {
    if (!text.empty()) {
        text += separator;
    }
    text += part;
}

}  // namespace

std::string clean(std::string_view text) {
    std::string result{text};
    std::ranges::replace_if(result, [](char c) { return c < ' ' || c > '~'; }, '?');
    return result;
}

std::string code_word(std::string_view text) {
    std::string word{text};
    std::ranges::replace_if(word, [](char c) { return c == ' ' || c == '_'; }, '-');
    return word;
}

std::string page_sizes_text(std::uint64_t page_sizes) {
    std::string text;
    int shown = 0;
    for (std::uint64_t rest = page_sizes; rest != 0 && shown < most_page_sizes_shown;
         rest &= rest - 1, ++shown) {
        add(text, ", ", format_size(rest & (~rest + 1)));
    }
    const int more = std::popcount(page_sizes) - shown;
    return more > 0 ? fmt::format("{} and {} larger ones", text, more) : text;
}

std::string abilities_text(const UnitAbilities& abilities) {
    std::string text;
    if (abilities.input_bits) {
        add(text, "; ", fmt::format("{}-bit addresses", *abilities.input_bits));
    }
    if (abilities.page_sizes != 0) {
        add(text, "; ", "pages of " + page_sizes_text(abilities.page_sizes));
    }
    if (abilities.has_interrupt_remapping) {
        add(text, "; ",
            *abilities.has_interrupt_remapping ? "remaps interrupts" : "does not remap interrupts");
    }
    if (abilities.can_forbid_reads && !*abilities.can_forbid_reads) {
        add(text, "; ", "a device that may write may read, too");
    }
    return text;
}

std::string reserved_text(const Reserved& reserved) {
    return fmt::format("{:#x} to {:#x} {}", reserved.first, reserved.last, to_string(reserved.kind));
}

std::string origins_text(const std::vector<Origin>& origins) {
    std::string text;
    for (const Origin& origin : origins) {
        add(text, "; ", clean(to_string(origin)));
    }
    return text;
}

std::string groups_text(const Containment& containment) {
    if (containment.kernel_groups.empty()) {
        return "no group";
    }
    std::string numbers;
    for (const std::uint32_t number : containment.kernel_groups) {
        add(numbers, ", ", std::to_string(number));
    }
    return (containment.kernel_groups.size() == 1 ? "group " : "groups ") + numbers;
}

std::string short_name(const Device& device) {
    return device.pci ? to_short_string(*device.pci) : clean(device.name);
}

}  // namespace guestmem::dma
