// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/dirty_log.hpp"

/// The switch of one region's dirty tracking: off, or on with a DirtyLog, changed while others write.
///
/// Concepts: most of the time nobody wants to know what was written; then a write costs one load of a pointer and
/// a branch that is always predicted right. start() puts a log there, stop() takes it away.
/// Contract: FIRST THE DATA, THEN mark_written(), as with DirtyLog::mark(). The switch loses nothing: when start()
/// has returned, the bytes that its caller reads contain every store that is not marked in the log. So: start(),
/// copy everything, then harvest and copy again until the writers stop.
/// Why: a writer stores data, then loads the pointer; start() stores the pointer, runs membarrier(), and its caller
/// loads data. A writer whose load came before its barrier missed the log, and has stored its data before the
/// barrier, too: start()'s caller sees it. A writer whose load came afterwards finds the log.
/// Where the process cannot have membarrier, the pointer always names a stand-in log without pages, whose marks do a
/// full fence and then load the real pointer. That fence pairs with the one in start().
/// When membarrier() fails in start(), tracking stays off.
/// Threads: any. mark_written() never waits; the rest takes turns.
/// Lifetime: does not move, outlives its last writer. A log lives as long as the tracker, also after stop(), since
/// a writer may be about to mark; the next start() with that page size empties it and takes it again. A late mark
/// from an earlier time makes a page dirty that is not, never the other way around.
/// Limits: one log for each page size that was asked for, at most 25.
/// Cost: off 0 to 0.2 ns on top of the store; on, that of DirtyLog::mark. Where membarrier is missing, a full fence and
/// a call more, also when off.
/// Example (examples/dirty_log.cpp):
///     DirtyTracker tracker{size_bytes};
///     GM_TRY(tracker.start());
///     store(offset, value); tracker.mark_written(offset, sizeof value);
///     DirtyPages pages = GM_TRY(tracker.harvest());

namespace guestmem {

class DirtyTracker {
public:
    /// For a region of `size_bytes`, off.
    explicit DirtyTracker(std::uint64_t size_bytes);
    DirtyTracker(const DirtyTracker&) = delete;
    DirtyTracker& operator=(const DirtyTracker&) = delete;
    ~DirtyTracker() = default;

    /// `count` bytes at `offset` of the region were written, before this call.
    void mark_written(std::uint64_t offset, std::uint64_t count) {
        // The stores of the data stay above the load; the processor's side of it is start()'s membarrier().
        std::atomic_signal_fence(std::memory_order_seq_cst);
        // Acquire, with the release of start(): the log is seen as it was made.
        DirtyLog* const log = active_.load(std::memory_order_acquire);
        if (log == nullptr) [[likely]]
            return;
        log->mark(offset, count);
    }

    /// On, with an empty log. An error when it is on, or for a page size that PageGrid refuses.
    [[nodiscard]] Result<void> start(std::uint64_t page_bytes = page_size_bytes);
    /// Off. What was not harvested is gone. An error when it is off.
    [[nodiscard]] Result<void> stop();

    [[nodiscard]] bool is_on() const { return log() != nullptr; }
    /// The log; null when off. It stays valid as long as the tracker.
    [[nodiscard]] DirtyLog* log() const { return real_.load(std::memory_order_acquire); }
    /// The marks since the last harvest; an error when off.
    [[nodiscard]] Result<DirtyPages> harvest();
    /// The same into memory that is there already (DirtyLog::harvest_into). After an error nothing in it is dirty.
    [[nodiscard]] Result<void> harvest_into(DirtyPages& pages);

    [[nodiscard]] std::uint64_t size_bytes() const { return size_bytes_; }

private:
    [[nodiscard]] Result<DirtyLog*> log_with(std::uint64_t page_bytes);

    std::atomic<DirtyLog*> active_{
        nullptr};  ///< what writers look at: the log or null; the stand-in where there is one
    std::atomic<DirtyLog*> real_{nullptr};  ///< the log when on
    std::uint64_t size_bytes_;
    std::unique_ptr<DirtyLog> stand_in_;  ///< only where membarrier is missing
    std::mutex mutex_;
    std::vector<std::unique_ptr<DirtyLog>> logs_;
};

}  // namespace guestmem
