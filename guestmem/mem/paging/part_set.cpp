// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/part_set.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace guestmem {

bool PartSet::contains_any(ImagePart part) const {
    const auto missing = first_missing(part);
    return missing != part && part.size_bytes > 0;
}

std::optional<ImagePart> PartSet::first_missing(ImagePart within) const {
    std::uint64_t begin = within.offset_bytes;
    const std::uint64_t behind = within.offset_bytes + within.size_bytes;
    auto next = parts_.upper_bound(begin);
    if (next != parts_.begin()) begin = std::max(begin, std::prev(next)->second);
    if (begin >= behind) return std::nullopt;
    // Parts that touch are one, so what follows a part is missing.
    const std::uint64_t stop = next == parts_.end() ? behind : std::min(behind, next->first);
    return ImagePart{.offset_bytes = begin, .size_bytes = stop - begin};
}

Result<void> PartSet::add(ImagePart part) {
    if (part.size_bytes == 0) return {};
    std::uint64_t begin = part.offset_bytes;
    std::uint64_t behind = part.offset_bytes + part.size_bytes;
    auto first = parts_.upper_bound(begin);
    if (first != parts_.begin() && std::prev(first)->second >= begin) --first;
    auto last = first;
    std::uint64_t merged_bytes = 0;
    for (; last != parts_.end() && last->first <= behind; ++last) {
        begin = std::min(begin, last->first);
        behind = std::max(behind, last->second);
        merged_bytes += last->second - last->first;
    }
    if (first == last && parts_.size() >= max_parts)
        return Error{Errc::exhausted,
                     fmt::format("the pages come in more than {} pieces that do not touch", max_parts)};
    parts_.erase(first, last);
    parts_.emplace(begin, behind);
    size_bytes_ += behind - begin - merged_bytes;
    return {};
}

}  // namespace guestmem
