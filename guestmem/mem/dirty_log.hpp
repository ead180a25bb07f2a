// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/dirty_pages.hpp"

/// The dirty log of one region: writers mark what they wrote, and somebody harvests the marks, for a migration, a
/// snapshot or a screen.
///
/// Concepts: one bit per page. A mark looks at the bit and sets it when it is not set, so that pages which are
/// written again and again cost two loads. A harvest exchanges every word that has bits for 0, runs membarrier()
/// and hands the bits out.
/// Contract: FIRST THE DATA, THEN THE MARK: store, then mark(), in one thread; no fence is needed between (mark() keeps
/// the compiler from reordering). Then no page is lost: of a store that is not seen by whoever reads the region's bytes
/// after a harvest returned, the mark is in a later harvest.
/// Marks outside of the region are clipped; a count of 0 marks nothing; offset + count may be more than 2^64.
/// Why: a writer stores data, then loads the bit; a harvest clears the bit, then its caller loads data. Without
/// barriers between the two steps on both sides, each can miss the other: the writer sees the old bit, the harvest's
/// caller the old data, and the page is lost (dirty_log_test.cpp finds up to a third of those that meet lost).
/// membarrier() is the barrier of the writers. A writer that loaded the bit before its barrier has stored the data
/// before it, too, so the harvest's caller sees the data; one that loads it afterwards sees the cleared bit and sets
/// it. A harvest that takes no bit needs no barrier, since it cleared none. Where the process cannot have membarrier,
/// each mark is an unconditional locked or: ordered by the word itself (release, with the exchange's acquire).
/// When membarrier() fails in a harvest, the bits go back into the log and the harvest is an error: nothing is lost.
/// Threads: mark, merge and the questions any, also during a harvest; harvest, harvest_into, peek and clear one at
/// a time.
/// Lifetime: does not move; outlives its last writer (DirtyTracker sees to that).
/// Limits: those of PageGrid (dirty_pages.hpp). Bits cost one bit per page once somebody writes near them.
/// Cost: on top of the store, mark of a page that is marked 0.9 ns, of one that is not 4 ns. 1 GiB (4 KiB pages): mark
/// 9 us, 0.7 us when all is marked; harvest 12 us when all is dirty, 0.9 us when nothing is, and the barrier. Measured
/// on an AMD EPYC with two busy processors; dirty_log_bench.cpp tells the same of another machine.
/// Example:
///     const auto log = GM_TRY(DirtyLog::create({.size_bytes = ram.size()}));
///     std::atomic_ref{word}.store(7, std::memory_order_relaxed);
///     log->mark(offset_of_word, sizeof word);
///     for (const DirtyRun& run : GM_TRY(log->harvest()).runs()) send(run);
/// Known holes: a writer in another process is not reached by membarrier() and needs a log of its own. A clean
/// log is scanned whole: 12 TiB of 4 KiB pages are 384 MiB of words.

namespace guestmem {

using DirtyLogOptions = DirtyPagesOptions;

class DirtyLog {
public:
    [[nodiscard]] static Result<std::unique_ptr<DirtyLog>> create(const DirtyLogOptions& options);
    DirtyLog(const DirtyLog&) = delete;
    DirtyLog& operator=(const DirtyLog&) = delete;
    ~DirtyLog() = default;

    /// The pages of `count` bytes at `offset` were written, before this call.
    void mark(std::uint64_t offset, std::uint64_t count) {
        // The stores of the data stay above; the processor's side of it is the harvest's membarrier().
        std::atomic_signal_fence(std::memory_order_seq_cst);
        // A count of 0 becomes 2^64 - 1 and goes the long way, as all that is not within one page.
        if (offset >= quick_bytes_ || count - 1 > page_mask_ - (offset & page_mask_)) [[unlikely]]
            return mark_range(offset, count);
        const std::uint64_t page = offset >> page_shift_;
        const std::atomic_ref word{words_[page / 64]};
        if ((word.load(std::memory_order_relaxed) >> (page % 64) & 1) != 0) [[likely]]
            return;
        word.fetch_or(std::uint64_t{1} << (page % 64), std::memory_order_release);
    }

    /// The same for any range, by whole words.
    void mark_range(std::uint64_t offset, std::uint64_t count);
    /// All that is dirty in `pages`, whatever its page size; what lies past the end of this region is left out.
    void merge(const DirtyPages& pages);

    [[nodiscard]] std::uint64_t size_bytes() const { return grid_.size_bytes(); }
    [[nodiscard]] std::uint64_t page_bytes() const { return grid_.page_bytes(); }
    [[nodiscard]] std::uint64_t count_pages() const { return grid_.count_pages(); }
    /// Whether the page around `offset` is marked; false past the end.
    [[nodiscard]] bool is_marked(std::uint64_t offset) const;

    /// Takes all marks.
    [[nodiscard]] Result<DirtyPages> harvest();
    /// The same into memory that is there already: what `pages` was before is gone. After an error nothing in it is
    /// dirty.
    [[nodiscard]] Result<void> harvest_into(DirtyPages& pages);
    /// A copy of the marks; they stay. It says nothing about the bytes of the pages.
    [[nodiscard]] Result<DirtyPages> peek() const;
    /// Drops all marks, as a harvest that nobody looks at: bytes that are read afterwards are up to date, or marked.
    [[nodiscard]] Result<void> clear();

private:
    friend class DirtyTracker;
    DirtyLog(const PageGrid& grid, detail::WordArray words, bool is_always_or);
    /// A log without pages, whose marks go to the log that `target` names, after a full fence.
    explicit DirtyLog(const std::atomic<DirtyLog*>& target) : target_(&target) {}
    /// Drops all marks without a barrier.
    void discard();
    void mark_word(std::uint64_t index, std::uint64_t bits);
    /// From word `index` up to the one before `last_index`.
    void mark_whole_words(std::uint64_t index, std::uint64_t last_index);

    // What mark() needs is in one cache line.
    std::uint64_t quick_bytes_ = 0;  ///< the region's size; 0 when every mark has to take the long way
    std::uint64_t page_mask_ = 0;
    std::uint64_t* words_ = nullptr;
    unsigned page_shift_ = 0;
    bool is_always_or_ = false;  ///< membarrier is missing
    const std::atomic<DirtyLog*>* target_ = nullptr;
    PageGrid grid_;
    detail::WordArray owner_;
};

}  // namespace guestmem
