// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/dirty_harvest.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "guestmem/base/sizes.hpp"
#include "guestmem/mem/dirty_pages.hpp"

namespace guestmem::vmm {
namespace {

/// Clears the first `count` bits.
void clear_first(std::vector<std::uint64_t>& words, std::uint64_t count) {
    const auto whole = std::min<std::uint64_t>(count / 64, words.size());
    std::fill_n(words.begin(), whole, 0);
    if (whole < words.size() && count % 64 != 0) words[whole] &= ~std::uint64_t{0} << (count % 64);
}

}  // namespace

std::uint64_t DirtyHarvest::Pending::count_pages() const {
    return (range.size_bytes() + page_size_bytes - 1) / page_size_bytes;
}

void DirtyHarvest::forget() {
    pending_.clear();
    told_.reset();
}

bool DirtyHarvest::is_told() const {
    return std::ranges::all_of(pending_, [](const Pending& pending) {
        return std::ranges::all_of(pending.words, [](std::uint64_t word) { return word == 0; });
    });
}

Result<void> DirtyHarvest::confirm(std::uint64_t ticket) {
    if (!told_ || told_->ticket != ticket) {
        return Error{Errc::invalid_argument,
                     fmt::format("ticket {} is not that of the last part; ask without one, and what was not "
                                 "confirmed is told again",
                                 ticket)};
    }
    const auto last = std::exchange(told_, std::nullopt)->last;
    if (!last) return {};
    for (Pending& pending : pending_) {
        if (pending.range.base() > *last) break;
        const std::uint64_t taken_bytes =
            std::min(last->value(), pending.range.last().value()) - pending.range.base().value();
        clear_first(pending.words, taken_bytes / page_size_bytes + 1);
    }
    return {};
}

/// By the region, not by its addresses: another one may stand there by now.
void DirtyHarvest::drop_unplugged() {
    const auto map = memory_.map();
    std::erase_if(pending_, [&](const Pending& pending) {
        const auto region = pending.region.lock();
        return region == nullptr || map->find_region(pending.range.base()) != region;
    });
}

void DirtyHarvest::merge(const VmMemory::DirtyRegion& dirty) {
    const GuestRange range = dirty.region->range();
    const auto words = dirty.pages.words();
    const auto at = std::ranges::find_if(
        pending_, [&](const Pending& pending) { return pending.range.base() >= range.base(); });
    if (at == pending_.end() || at->range != range) {
        pending_.insert(at, Pending{dirty.region, range, {words.begin(), words.end()}});
        return;
    }
    at->region = dirty.region;
    for (std::size_t index = 0; index < std::min(words.size(), at->words.size()); ++index)
        at->words[index] |= words[index];
}

Result<void> DirtyHarvest::collect() {
    const auto taken = GM_TRY(memory_.harvest_dirty());
    for (const VmMemory::DirtyRegion& dirty : taken) {
        if (dirty.pages.is_any_dirty()) merge(dirty);
    }
    return {};
}

Result<DirtyHarvest::Part> DirtyHarvest::next(const Wish& wish) {
    if (wish.limit == 0 || wish.limit > max_ranges) {
        return Error{Errc::out_of_range,
                     fmt::format("a part of {} ranges: ask for 1 to {}", wish.limit, max_ranges)};
    }
    if (!memory_.is_logging()) return Error{Errc::not_found, "the dirty log is off; switch it on first"};
    if (wish.confirm) GM_TRY(confirm(*wish.confirm));
    drop_unplugged();
    if (!wish.confirm || is_told()) GM_TRY(collect());
    Part part{.ticket = next_ticket_++};
    for (const Pending& pending : pending_) {
        for_each_bit_run(pending.words, pending.count_pages(), [&](std::uint64_t page, std::uint64_t count) {
            if (part.ranges.size() == wish.limit) {
                part.has_more = true;
                return;
            }
            const std::uint64_t offset = page * page_size_bytes;
            const std::uint64_t size_bytes =
                std::min(count * page_size_bytes, pending.range.size_bytes() - offset);
            const GuestAddress base{pending.range.base().value() + offset};
            if (const auto range = GuestRange::create(base, size_bytes)) part.ranges.push_back(*range);
        });
    }
    told_ = Told{.ticket = part.ticket, .last = {}};
    if (!part.ranges.empty()) told_->last = part.ranges.back().last();
    return part;
}

}  // namespace guestmem::vmm
