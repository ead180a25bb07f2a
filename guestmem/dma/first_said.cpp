// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/first_said.hpp"

#include <algorithm>
#include <numeric>

namespace guestmem::dma {

FirstSaid::FirstSaid(std::span<const Selector> devices)
    : devices_(devices.begin(), devices.end()), first_(devices.size()) {
    for (std::size_t at = 0; at < devices_.size(); ++at) {
        if (const auto* range = std::get_if<PciRange>(&devices_[at]))
            segments_[range->segment].emplace_back(range->first_rid, at);
        else if (const auto* mmio = std::get_if<MmioDevice>(&devices_[at]))
            registers_[mmio->registers].push_back(at);
    }
}

FirstSaid::Line* FirstSaid::line_of(std::uint16_t segment, std::uint16_t rid_mask) {
    const auto functions = segments_.find(segment);
    if (functions == segments_.end()) return nullptr;
    auto& lines = lines_[segment];
    const auto found = lines.find(rid_mask);
    if (found != lines.end()) return &found->second;
    if (lines.size() == max_masks) return nullptr;
    Line& line = lines[rid_mask];
    line.functions = functions->second;
    for (auto& [rid, device] : line.functions) rid = static_cast<std::uint16_t>(rid & rid_mask);
    std::ranges::sort(line.functions);
    line.next.resize(line.functions.size() + 1);
    std::iota(line.next.begin(), line.next.end(), std::size_t{0});
    return &line;
}

void FirstSaid::tell_of_range(const PciRange& range, std::uint16_t rid_mask, std::size_t fact) {
    Line* const line = line_of(range.segment, rid_mask);
    if (line == nullptr) return;
    const auto settle = [&](std::size_t at) {
        while (line->next[at] != at) at = line->next[at] = line->next[line->next[at]];
        return at;
    };
    const auto begin = std::ranges::lower_bound(line->functions, range.first_rid, {},
                                                &std::pair<std::uint16_t, std::size_t>::first);
    std::size_t at = settle(static_cast<std::size_t>(begin - line->functions.begin()));
    while (at < line->functions.size() && line->functions[at].first <= range.last_rid) {
        auto& first = first_[line->functions[at].second];
        first = std::min(first.value_or(fact), fact);
        line->next[at] = at + 1;
        at = settle(at);
    }
}

void FirstSaid::tell(const Selector& who, std::uint16_t rid_mask, std::size_t fact) {
    if (const auto* range = std::get_if<PciRange>(&who)) {
        tell_of_range(*range, rid_mask, fact);
    } else if (const auto* path = std::get_if<PciPath>(&who)) {
        if (path->is_bridge || path->hops.size() != 1) return;
        const PciHop hop = path->hops.front();
        const std::uint16_t rid = pci_address(path->segment, path->start_bus, hop.device, hop.function).rid;
        tell_of_range({.segment = path->segment, .first_rid = rid, .last_rid = rid}, 0xffff, fact);
    } else if (const auto* mmio = std::get_if<MmioDevice>(&who)) {
        const auto found = registers_.find(mmio->registers);
        if (found == registers_.end()) return;
        for (const std::size_t device : found->second)
            first_[device] = std::min(first_[device].value_or(fact), fact);
        registers_.erase(found);
    } else if (const auto* rest = std::get_if<PciRest>(&who)) {
        rests_.emplace(rest->segment, fact);
    }
}

std::optional<std::size_t> FirstSaid::first_of(std::size_t device) const {
    if (first_[device]) return first_[device];
    if (of_all_) return of_all_;
    const auto* range = std::get_if<PciRange>(&devices_[device]);
    const auto found = range == nullptr ? rests_.end() : rests_.find(range->segment);
    return found == rests_.end() ? std::nullopt : std::optional{found->second};
}

}  // namespace guestmem::dma
