// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/paging/pager.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/paging/lazy_area.hpp"
#include "guestmem/mem/paging/pager_work.hpp"
#include "guestmem/sys/deadline.hpp"

namespace guestmem {
namespace {

Error bad_option(const std::string& why) { return Error{Errc::invalid_argument, "lazy memory: " + why}; }

Result<void> check_piece(std::uint64_t bytes, const char* name) {
    if (bytes >= page_size_bytes && bytes <= max_part_bytes && bytes % page_size_bytes == 0) return {};
    return bad_option(fmt::format("{} of {} bytes is not a multiple of {} up to {}", name, bytes,
                                  page_size_bytes, max_part_bytes));
}

Result<void> check_options(const PagerOptions& options) {
    if (!options.source) return bad_option("it has no source");
    if (options.regions.empty() || options.regions.size() > max_pager_regions)
        return bad_option(
            fmt::format("{} regions are not 1 to {}", options.regions.size(), max_pager_regions));
    const std::uint64_t size = options.source->size_bytes();
    std::vector<ImagePart> sorted = options.regions;
    std::ranges::sort(sorted, {}, &ImagePart::offset_bytes);
    std::uint64_t behind = 0;
    for (const ImagePart& part : sorted) {
        if (part.size_bytes == 0 || !is_whole_pages(part) || !is_within(part, size))
            return bad_option(fmt::format("{} bytes at {} are no whole pages of an image of {} bytes",
                                          part.size_bytes, part.offset_bytes, size));
        if (part.offset_bytes < behind)
            return bad_option(fmt::format("two regions show the image's bytes at {}", part.offset_bytes));
        behind = part.offset_bytes + part.size_bytes;
    }
    GM_TRY(check_piece(options.fetch_bytes, "a fetch"));
    GM_TRY(check_piece(options.ahead_bytes, "a fetch ahead"));
    for (const std::uint64_t page : options.ahead)
        if (page >= size / page_size_bytes)
            return bad_option(fmt::format("page {} to fetch ahead is outside the image", page));
    if (options.patience <= std::chrono::milliseconds{0})
        return bad_option(fmt::format("a patience of {} ms is none", options.patience.count()));
    if (options.is_recorded && (options.is_filled || !options.ahead.empty()))
        return bad_option("touches of pages that are fetched ahead cannot be recorded");
    return {};
}

}  // namespace

Result<std::shared_ptr<Pager>> Pager::start(PagerOptions options) {
    GM_TRY(check_options(options));
    options.patience = std::min<std::chrono::milliseconds>(options.patience, Deadline::farthest);
    auto work = std::make_unique<PagerWork>(std::move(options));
    GM_TRY(work->prepare());
    GM_TRY(work->launch());
    return std::make_shared<Pager>(Key{}, std::move(work));
}

Pager::Pager(Key, std::unique_ptr<PagerWork> work) : work_(std::move(work)) {}
Pager::~Pager() {
    // A child has neither the thread nor the memory, and locks and lists as they were at the fork: all of it is left
    // as it is. What it would stop watching is the parent's memory.
    if (!work_->is_own()) static_cast<void>(work_.release());
}

std::size_t Pager::count_regions() const { return work_->areas().size(); }

Result<std::shared_ptr<const HostMemory>> Pager::memory(std::size_t index) const {
    if (index >= count_regions())
        return Error{Errc::out_of_range,
                     fmt::format("lazy memory: there is no region {}, there are {}", index, count_regions())};
    return HostMemory::borrow(work_->areas()[index]->mapping.bytes(), MapAccess::read_write,
                              shared_from_this());
}

Result<void> Pager::health() const {
    const std::lock_guard lock{work_->shared().mutex};
    if (work_->shared().failure) return *work_->shared().failure;
    return {};
}

PagerCounters Pager::counters() const {
    const std::lock_guard lock{work_->shared().mutex};
    return work_->shared().counters;
}

bool Pager::is_filled() const {
    const std::lock_guard lock{work_->shared().mutex};
    return work_->shared().count_open_areas == 0;
}

Result<void> Pager::wait_until_filled(std::chrono::milliseconds timeout) const {
    const PagerWork::Shared& shared = work_->shared();
    std::unique_lock lock{shared.mutex};
    const bool is_over = shared.has_changed.wait_for(
        lock, std::clamp<std::chrono::milliseconds>(timeout, -Deadline::farthest, Deadline::farthest),
        [&] { return shared.failure.has_value() || shared.count_open_areas == 0; });
    if (shared.failure) return *shared.failure;
    if (is_over) return {};
    return Error{Errc::timed_out, fmt::format("lazy memory: it is not full after {} ms", timeout.count())};
}

std::vector<std::uint64_t> Pager::recorded() const {
    const std::lock_guard lock{work_->shared().mutex};
    return work_->shared().recorded;
}

}  // namespace guestmem
