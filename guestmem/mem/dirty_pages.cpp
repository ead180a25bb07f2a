// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/dirty_pages.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

namespace guestmem {

Result<PageGrid> PageGrid::create(const DirtyPagesOptions& options) {
    if (!std::has_single_bit(options.page_bytes) || options.page_bytes < min_dirty_page_bytes ||
        options.page_bytes > max_dirty_page_bytes)
        return Error{Errc::invalid_argument,
                     fmt::format("dirty pages of {} bytes: give a power of two from {} to {}",
                                 options.page_bytes, min_dirty_page_bytes, max_dirty_page_bytes)};
    if (options.size_bytes == 0)
        return Error{Errc::invalid_argument, "dirty pages of a region of 0 bytes: it has no pages"};
    PageGrid grid;
    grid.size_bytes_ = options.size_bytes;
    grid.page_shift_ = static_cast<unsigned>(std::countr_zero(options.page_bytes));
    grid.count_pages_ = ((options.size_bytes - 1) >> grid.page_shift_) + 1;
    if (grid.count_pages_ > max_dirty_pages)
        return Error{
            Errc::out_of_range,
            fmt::format("dirty pages of {} bytes in a region of {} bytes: these are {} pages, at most {} can "
                        "be kept; take larger pages",
                        options.page_bytes, options.size_bytes, grid.count_pages_, max_dirty_pages)};
    return grid;
}

namespace detail {

Result<WordArray> create_zeroed_words(std::uint64_t count) {
    // NOLINTNEXTLINE(cppcoreguidelines-no-malloc): calloc alone hands out the kernel's zero pages untouched
    WordArray words{static_cast<std::uint64_t*>(std::calloc(count, sizeof(std::uint64_t)))};
    if (!words)
        return Error::from_errno(ENOMEM,
                                 fmt::format("{} bytes for a dirty bitmap", count * sizeof(std::uint64_t)));
    return words;
}

}  // namespace detail

Result<DirtyPages> DirtyPages::create(const DirtyPagesOptions& options) {
    return create(GM_TRY(PageGrid::create(options)));
}

Result<DirtyPages> DirtyPages::create(const PageGrid& grid) {
    return DirtyPages{grid, GM_TRY(detail::create_zeroed_words(grid.count_words()))};
}

std::uint64_t DirtyPages::count_dirty() const {
    std::uint64_t count = 0;
    for (const std::uint64_t word : words()) count += static_cast<std::uint64_t>(std::popcount(word));
    return count;
}

bool DirtyPages::is_any_dirty() const {
    return std::ranges::any_of(words(), [](std::uint64_t word) { return word != 0; });
}

bool DirtyPages::is_dirty(std::uint64_t offset) const {
    if (offset >= grid_.size_bytes()) return false;
    const std::uint64_t page = offset >> grid_.page_shift();
    return (words_[page / 64] >> (page % 64) & 1) != 0;
}

void DirtyPages::mark(std::uint64_t offset, std::uint64_t count) {
    const auto span = grid_.pages_of(offset, count);
    if (!span) return;
    is_touched_ = true;
    std::uint64_t bits = span->first_bits();
    for (std::uint64_t word = span->first_word(); word < span->last_word(); ++word) {
        words_[word] |= bits;
        bits = ~std::uint64_t{0};
    }
    words_[span->last_word()] |= bits & span->last_bits();
}

void DirtyPages::merge(const DirtyPages& other) {
    if (other.grid_.page_shift() != grid_.page_shift()) {
        other.for_each_run([&](DirtyRun run) { mark(run.offset, run.size_bytes); });
        return;
    }
    if (!other.is_touched_) return;
    is_touched_ = true;
    const std::uint64_t count = std::min(grid_.count_words(), other.grid_.count_words());
    for (std::uint64_t i = 0; i < count; ++i)
        if (other.words_[i] != 0) words_[i] |= other.words_[i];
    if (count != 0 && count == grid_.count_words()) words_[count - 1] &= grid_.last_word_mask();
}

void DirtyPages::clear() {
    if (!std::exchange(is_touched_, false)) return;
    // Looks before it writes, so that memory which was never dirty stays untouched.
    const std::uint64_t count = grid_.count_words();
    for (std::uint64_t index = 0; index < count;) {
        index = detail::skip_clean_groups(words(), index);
        for (std::uint64_t i = 0; i < detail::group_words && index < count; ++i) words_[index++] = 0;
    }
}

std::vector<DirtyRun> DirtyPages::runs() const {
    std::vector<DirtyRun> found;
    for_each_run([&](DirtyRun run) { found.push_back(run); });
    return found;
}

Error DirtyPages::past_the_end(std::uint64_t base) const {
    return Error{Errc::out_of_range,
                 fmt::format("dirty pages of {} bytes at address {:#x} reach past 2^64", size_bytes(), base)};
}

bool operator==(const DirtyPages& left, const DirtyPages& right) {
    return left.grid_ == right.grid_ && std::ranges::equal(left.words(), right.words());
}

}  // namespace guestmem
