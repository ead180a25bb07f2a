// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/memory_map.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "guestmem/mem/layout.hpp"

namespace guestmem {

MemoryMap::MemoryMap(Token /*token*/, std::vector<std::shared_ptr<const Region>> regions,
                     std::uint64_t granule_bytes)
    : regions_(std::move(regions)), granule_bytes_(granule_bytes), index_(regions_) {}

std::shared_ptr<const Region> MemoryMap::find_region(GuestAddress address) const {
    const std::size_t number = index_.find_at_or_below(address.value());
    if (number == regions_.size() || !regions_[number]->range().contains(address)) return nullptr;
    return regions_[number];
}

std::optional<GuestAddress> MemoryMap::last() const {
    if (regions_.empty()) return std::nullopt;
    return regions_.back()->range().last();
}

std::uint64_t MemoryMap::memory_bytes() const {
    std::uint64_t sum = 0;
    for (const auto& region : regions_)
        if (region->is_memory()) sum += region->range().size_bytes();
    return sum;
}

AccessResult<void> MemoryMap::check_range(const GuestRange& range, Access access) const {
    std::uint64_t done = 0;
    while (done < range.size_bytes()) {
        const auto run = find_run(GuestAddress{range.base().value() + done}, access);
        if (!run) return run.error();
        done += std::min(run->size_bytes, range.size_bytes() - done);
    }
    return {};
}

AccessResult<Run> MemoryMap::find_run(GuestAddress address, Access access) const {
    const LookupEntry& entry = index_.find(address.value());
    const std::uint64_t offset = address.value() - entry.base;
    if (entry.room != 0 && offset < entry.room + 7) [[likely]] {
        if (access == Access::write && !entry.is_writable()) return refuse(address, access);
        return Run{entry.host + offset, entry.room + 7 - offset, entry.tracker(), offset};
    }
    // A hole, a device, or a region of less than 8 bytes, which has no room in the index.
    const std::size_t number = index_.find_at_or_below(address.value());
    if (number == regions_.size()) return refuse(address, access);
    const Region& region = *regions_[number];
    const bool is_refused = !region.range().contains(address) || !region.is_memory() ||
                            (access == Access::write && !region.is_writable());
    if (is_refused) return refuse(address, access);
    const std::uint64_t inside = address.value() - region.range().base().value();
    return Run{region.host_base() + inside, region.range().size_bytes() - inside, &region.dirty(), inside};
}

AccessError MemoryMap::refuse(GuestAddress address, Access access) const {
    const auto region = find_region(address);
    AccessReason reason = AccessReason::hole;
    if (region) {
        reason = region->is_memory() ? AccessReason::read_only : AccessReason::device;
    } else if (regions_.empty() || address > regions_.back()->range().last()) {
        reason = AccessReason::out_of_range;
    }
    return AccessError{reason, access, address.value(), 0};
}

Result<std::size_t> MemoryMap::number_of(const GuestRange& range, std::string_view what) const {
    const std::size_t number = index_.find_at_or_below(range.base().value());
    if (number < regions_.size() && regions_[number]->range() == range) return number;
    std::string there = "nothing is mapped there";
    const auto first =
        std::ranges::find_if(regions_, [&](const auto& region) { return region->range().overlaps(range); });
    if (first != regions_.end())
        there =
            fmt::format("region '{}' there is {:#x} to {:#x}; give exactly the range of one region",
                        (*first)->name(), (*first)->range().base().value(), (*first)->range().last().value());
    return Error{Errc::not_found, fmt::format("{} region {:#x} to {:#x}: {}", what, range.base().value(),
                                              range.last().value(), there)};
}

Result<std::shared_ptr<const MemoryMap>> MemoryMap::with(std::shared_ptr<const Region> region) const {
    Layout layout = Layout::from(*this);
    layout.add(std::move(region));
    return std::move(layout).freeze();
}

Result<std::shared_ptr<const MemoryMap>> MemoryMap::without(const GuestRange& range) const {
    const std::size_t number = GM_TRY(number_of(range, "remove"));
    Layout layout{{.granule_bytes = granule_bytes_}};
    for (std::size_t i = 0; i < regions_.size(); ++i)
        if (i != number) layout.add(regions_[i]);
    return std::move(layout).freeze();
}

Result<std::shared_ptr<const MemoryMap>> MemoryMap::with_replaced(
    // NOLINTNEXTLINE(performance-unnecessary-value-param): its owner gives it away, as to Layout::add()
    const GuestRange& range, std::shared_ptr<const Region> region) const {
    const std::size_t number = GM_TRY(number_of(range, "replace"));
    Layout layout{{.granule_bytes = granule_bytes_}};
    for (std::size_t i = 0; i < regions_.size(); ++i) layout.add(i == number ? region : regions_[i]);
    return std::move(layout).freeze();
}

}  // namespace guestmem
