// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/lazy_area.hpp"

#include <algorithm>
#include <bit>

namespace guestmem {

ImagePart common_part(ImagePart one, ImagePart other) {
    const std::uint64_t first = std::max(one.offset_bytes, other.offset_bytes);
    const std::uint64_t behind =
        std::min(one.offset_bytes + one.size_bytes, other.offset_bytes + other.size_bytes);
    return {.offset_bytes = first, .size_bytes = first < behind ? behind - first : 0};
}

bool is_whole_pages(ImagePart part) {
    return part.offset_bytes % page_size_bytes == 0 && part.size_bytes % page_size_bytes == 0;
}

bool is_within(ImagePart part, std::uint64_t size_bytes) {
    return part.offset_bytes <= size_bytes && part.size_bytes <= size_bytes - part.offset_bytes;
}

SettledPages::SettledPages(std::uint64_t count_pages)
    : words_((count_pages + 63) / 64), count_pages_(count_pages) {}

std::uint64_t SettledPages::add(PageRun run) {
    std::uint64_t added = 0;
    for (std::uint64_t page = run.first; page < run.behind();) {
        const std::uint64_t bit = page % 64;
        const std::uint64_t count = std::min<std::uint64_t>(64 - bit, run.behind() - page);
        const std::uint64_t ones = count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
        std::uint64_t& word = words_[page / 64];
        added += static_cast<std::uint64_t>(std::popcount((ones << bit) & ~word));
        word |= ones << bit;
        page += count;
    }
    count_ += added;
    return added;
}

PageRun SettledPages::next_missing(PageRun within) const {
    std::uint64_t page = within.first;
    while (page < within.behind()) {
        const std::uint64_t missing = ~words_[page / 64] >> page % 64;
        if (missing != 0) {
            page += static_cast<std::uint64_t>(std::countr_zero(missing));
            break;
        }
        page += 64 - page % 64;
    }
    PageRun run{.first = std::min(page, within.behind())};
    while (run.behind() < within.behind() && !contains(run.behind())) ++run.count;
    return run;
}

PageRun SettledPages::missing_around(std::uint64_t page, PageRun within) const {
    PageRun run{.first = page, .count = 1};
    while (run.first > within.first && !contains(run.first - 1)) {
        --run.first;
        ++run.count;
    }
    while (run.behind() < within.behind() && !contains(run.behind())) ++run.count;
    return run;
}

PageRun LazyArea::overlap(ImagePart other) const {
    const ImagePart common = common_part(part, other);
    if (common.size_bytes == 0) return {};
    return {.first = (common.offset_bytes - part.offset_bytes) / page_size_bytes,
            .count = common.size_bytes / page_size_bytes};
}

PageRun LazyArea::overlap(std::span<const std::byte> addresses) const {
    const auto own = reinterpret_cast<std::uintptr_t>(mapping.bytes().data());
    const ImagePart common = common_part(
        {.offset_bytes = own, .size_bytes = part.size_bytes},
        {.offset_bytes = reinterpret_cast<std::uintptr_t>(addresses.data()), .size_bytes = addresses.size()});
    if (common.size_bytes == 0) return {};
    return {.first = (common.offset_bytes - own) / page_size_bytes,
            .count = common.size_bytes / page_size_bytes};
}

}  // namespace guestmem
