// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/dirty_log.hpp"

#include <utility>

#include "guestmem/sys/membarrier.hpp"

namespace guestmem {
namespace {

std::uint64_t load(std::uint64_t& word) { return std::atomic_ref{word}.load(std::memory_order_relaxed); }

using detail::group_words;

std::uint64_t any_of_group(std::uint64_t* group) {
    return load(group[0]) | load(group[1]) | load(group[2]) | load(group[3]) | load(group[4]) |
           load(group[5]) | load(group[6]) | load(group[7]);
}

std::uint64_t all_of_group(std::uint64_t* group) {
    return load(group[0]) & load(group[1]) & load(group[2]) & load(group[3]) & load(group[4]) &
           load(group[5]) & load(group[6]) & load(group[7]);
}

/// Calls function(index) for each word that is not 0.
template <typename Function>
void for_each_used_word(std::uint64_t* words, std::uint64_t count, Function&& function) {
    std::uint64_t index = 0;
    for (; count - index >= group_words; index += group_words) {
        if (any_of_group(words + index) == 0) continue;
        for (std::uint64_t i = index; i < index + group_words; ++i)
            if (load(words[i]) != 0) function(i);
    }
    for (; index < count; ++index)
        if (load(words[index]) != 0) function(index);
}

}  // namespace

DirtyLog::DirtyLog(const PageGrid& grid, detail::WordArray words, bool is_always_or)
    : quick_bytes_(is_always_or ? 0 : grid.size_bytes()),
      page_mask_(grid.page_bytes() - 1),
      words_(words.get()),
      page_shift_(grid.page_shift()),
      is_always_or_(is_always_or),
      grid_(grid),
      owner_(std::move(words)) {}

Result<std::unique_ptr<DirtyLog>> DirtyLog::create(const DirtyLogOptions& options) {
    const PageGrid grid = GM_TRY(PageGrid::create(options));
    detail::WordArray words = GM_TRY(detail::create_zeroed_words(grid.count_words()));
    return std::unique_ptr<DirtyLog>{new DirtyLog{grid, std::move(words), !prepare_membarrier()}};
}

void DirtyLog::mark_word(std::uint64_t index, std::uint64_t bits) {
    const std::atomic_ref word{words_[index]};
    if ((word.load(std::memory_order_relaxed) & bits) == bits && !is_always_or_) return;
    word.fetch_or(bits, std::memory_order_release);
}

void DirtyLog::mark_whole_words(std::uint64_t index, std::uint64_t last_index) {
    constexpr std::uint64_t all = ~std::uint64_t{0};
    if (!is_always_or_) {
        for (; last_index - index >= group_words; index += group_words) {
            std::uint64_t* const group = words_ + index;
            if (all_of_group(group) == all) continue;
            for (std::uint64_t i = 0; i < group_words; ++i) mark_word(index + i, all);
        }
    }
    for (; index < last_index; ++index) mark_word(index, all);
}

void DirtyLog::mark_range(std::uint64_t offset, std::uint64_t count) {
    std::atomic_signal_fence(std::memory_order_seq_cst);
    if (target_ != nullptr) [[unlikely]] {
        // Pairs with the fence of DirtyTracker::start(): either it sees our stores, or we see its log.
        std::atomic_thread_fence(std::memory_order_seq_cst);
        if (DirtyLog* log = target_->load(std::memory_order_acquire)) log->mark(offset, count);
        return;
    }
    const auto span = grid_.pages_of(offset, count);
    if (!span) return;
    if (span->first_word() == span->last_word())
        return mark_word(span->first_word(), span->first_bits() & span->last_bits());
    mark_word(span->first_word(), span->first_bits());
    mark_whole_words(span->first_word() + 1, span->last_word());
    mark_word(span->last_word(), span->last_bits());
}

void DirtyLog::merge(const DirtyPages& pages) {
    std::atomic_signal_fence(std::memory_order_seq_cst);
    pages.for_each_run([&](DirtyRun run) { mark_range(run.offset, run.size_bytes); });
}

bool DirtyLog::is_marked(std::uint64_t offset) const {
    if (offset >= grid_.size_bytes()) return false;
    const std::uint64_t page = offset >> grid_.page_shift();
    return (load(words_[page / 64]) >> (page % 64) & 1) != 0;
}

Result<DirtyPages> DirtyLog::harvest() {
    DirtyPages pages = GM_TRY(DirtyPages::create(grid_));
    GM_TRY(harvest_into(pages));
    return pages;
}

Result<void> DirtyLog::harvest_into(DirtyPages& pages) {
    if (pages.grid() == grid_) {
        pages.clear();
    } else {
        pages = DirtyPages{};
        pages = GM_TRY(DirtyPages::create(grid_));
    }
    for_each_used_word(words_, grid_.count_words(), [&](std::uint64_t index) {
        pages.words_[index] = std::atomic_ref{words_[index]}.exchange(0, std::memory_order_acquire);
        pages.is_touched_ = true;
    });
    if (!pages.is_touched_ || is_always_or_) return {};
    if (auto done = membarrier(); !done) {
        merge(pages);
        pages.clear();
        return std::move(done).error().with_context("harvest a dirty log; its marks are kept");
    }
    return {};
}

Result<DirtyPages> DirtyLog::peek() const {
    DirtyPages pages = GM_TRY(DirtyPages::create(grid_));
    for_each_used_word(words_, grid_.count_words(), [&](std::uint64_t index) {
        pages.words_[index] = std::atomic_ref{words_[index]}.load(std::memory_order_acquire);
        pages.is_touched_ = true;
    });
    return pages;
}

Result<void> DirtyLog::clear() {
    GM_TRY(harvest());
    return {};
}

void DirtyLog::discard() {
    for_each_used_word(words_, grid_.count_words(), [&](std::uint64_t index) {
        std::atomic_ref{words_[index]}.exchange(0, std::memory_order_acquire);
    });
}

}  // namespace guestmem
