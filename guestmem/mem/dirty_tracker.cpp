// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/dirty_tracker.hpp"

#include <utility>

#include "guestmem/sys/membarrier.hpp"

namespace guestmem {

DirtyTracker::DirtyTracker(std::uint64_t size_bytes) : size_bytes_(size_bytes) {
    if (prepare_membarrier()) return;
    stand_in_.reset(new DirtyLog{real_});
    active_.store(stand_in_.get(), std::memory_order_release);
}

Result<DirtyLog*> DirtyTracker::log_with(std::uint64_t page_bytes) {
    for (const auto& log : logs_) {
        if (log->page_bytes() != page_bytes) continue;
        // Without a barrier: start() has one after it, and nobody reads data before. A writer from an earlier time
        // that saw a mark which goes here has stored its data before that barrier.
        log->discard();
        return log.get();
    }
    logs_.push_back(GM_TRY(DirtyLog::create({.size_bytes = size_bytes_, .page_bytes = page_bytes})));
    return logs_.back().get();
}

Result<void> DirtyTracker::start(std::uint64_t page_bytes) {
    const std::scoped_lock lock{mutex_};
    if (is_on()) return Error{Errc::busy, "start dirty tracking: it is on; stop it first"};
    DirtyLog* const log = GM_TRY_CONTEXT(log_with(page_bytes), "start dirty tracking");
    real_.store(log, std::memory_order_seq_cst);
    if (stand_in_) {
        // Pairs with the fence of the stand-in (DirtyLog::mark_range).
        std::atomic_thread_fence(std::memory_order_seq_cst);
        return {};
    }
    active_.store(log, std::memory_order_seq_cst);
    if (auto done = membarrier(); !done) {
        active_.store(nullptr, std::memory_order_release);
        real_.store(nullptr, std::memory_order_release);
        return std::move(done).error().with_context("start dirty tracking; it stays off");
    }
    return {};
}

Result<void> DirtyTracker::stop() {
    const std::scoped_lock lock{mutex_};
    if (!is_on()) return Error{Errc::invalid_argument, "stop dirty tracking: it is off"};
    if (!stand_in_) active_.store(nullptr, std::memory_order_release);
    real_.store(nullptr, std::memory_order_release);
    return {};
}

Result<DirtyPages> DirtyTracker::harvest() {
    DirtyPages pages;
    GM_TRY(harvest_into(pages));
    return pages;
}

Result<void> DirtyTracker::harvest_into(DirtyPages& pages) {
    const std::scoped_lock lock{mutex_};
    pages.clear();
    DirtyLog* const log = real_.load(std::memory_order_acquire);
    if (log == nullptr)
        return Error{Errc::invalid_argument, "harvest dirty pages: tracking is off; start it"};
    return log->harvest_into(pages);
}

}  // namespace guestmem
