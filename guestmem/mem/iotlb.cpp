// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/iotlb.hpp"

#include <fmt/format.h>

#include <iterator>

namespace guestmem {

Result<Iotlb> Iotlb::create(const IotlbOptions& options) {
    if (options.capacity == 0 || options.capacity > max_iotlb_capacity)
        return Error{Errc::out_of_range, fmt::format("IOTLB: a capacity of {} entries; it can be 1 to {}",
                                                     options.capacity, max_iotlb_capacity)};
    return Iotlb{options.capacity};
}

std::optional<Translation> Iotlb::lookup(IoAddress address) {
    const auto above = entries_.upper_bound(address);
    if (above != entries_.begin()) {
        Entry& entry = std::prev(above)->second;
        if (entry.translation.from().contains(address)) {
            entry.is_used = true;
            ++counts_.hits;
            return entry.translation;
        }
    }
    ++counts_.misses;
    return std::nullopt;
}

void Iotlb::evict_one() {
    auto at = entries_.lower_bound(hand_);
    for (;; ++at) {
        if (at == entries_.end()) at = entries_.begin();
        if (!at->second.is_used) break;
        at->second.is_used = false;
    }
    const auto next = entries_.erase(at);
    hand_ = next == entries_.end() ? IoAddress{} : next->first;
    ++counts_.evictions;
}

void Iotlb::put(const Entry& entry) {
    if (entries_.size() == capacity_) evict_one();
    entries_.emplace(entry.translation.from().base(), entry);
}

void Iotlb::invalidate(const IoRange& range) {
    auto at = entries_.upper_bound(range.base());
    if (at != entries_.begin() && std::prev(at)->second.translation.from().overlaps(range)) --at;
    while (at != entries_.end() && at->second.translation.from().overlaps(range)) {
        const Entry entry = at->second;
        const IoRange& from = entry.translation.from();
        at = entries_.erase(at);
        if (from.base() < range.base()) {
            const IoAddress last{range.base().value() - 1};
            put({*entry.translation.within(*IoRange::from_first_last(from.base(), last)), entry.is_used});
        }
        if (from.last() > range.last()) {
            const IoAddress first{range.last().value() + 1};
            put({*entry.translation.within(*IoRange::from_first_last(first, from.last())), entry.is_used});
            return;
        }
    }
}

void Iotlb::absorb(Entries::iterator neighbor, Entry& entry) {
    const Translation& other = neighbor->second.translation;
    const bool is_below = other.from().base() < entry.translation.from().base();
    const auto both = is_below ? other.joined_with(entry.translation) : entry.translation.joined_with(other);
    if (!both) return;
    entry = {*both, entry.is_used || neighbor->second.is_used};
    entries_.erase(neighbor);
}

void Iotlb::insert(const Translation& translation) {
    invalidate(translation.from());
    if (translation.permissions() == Permissions::none) return;
    Entry entry{translation};
    const auto above = entries_.upper_bound(translation.from().base());
    const bool has_below = above != entries_.begin();
    const auto below = has_below ? std::prev(above) : above;
    if (above != entries_.end()) absorb(above, entry);
    if (has_below) absorb(below, entry);
    put(entry);
}

std::vector<Translation> Iotlb::entries() const {
    std::vector<Translation> all;
    all.reserve(entries_.size());
    for (const auto& [base, entry] : entries_) all.push_back(entry.translation);
    return all;
}

}  // namespace guestmem
