// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/selector_index.hpp"

#include <algorithm>
#include <numeric>
#include <set>

namespace guestmem::dma {
namespace {

constexpr std::uint64_t value_of(std::uint16_t segment, std::uint16_t rid) {
    return std::uint64_t{segment} << 16 | rid;
}

}  // namespace

SelectorIndex::SelectorIndex(const PciTopology& topology, std::span<const PciAddress> further_points)
    : topology_(topology),
      count_functions_(topology.functions().size()),
      further_points_(further_points.begin(), further_points.end()) {
    tree_.points.assign(topology.preorder().begin(), topology.preorder().end());
    order_of_mask(0xffff);
}

PciAddress SelectorIndex::address(std::uint32_t point) const {
    return point < count_functions_ ? topology_.function(point).address
                                    : further_points_[point - count_functions_];
}

SelectorIndex::Order& SelectorIndex::order_of_mask(std::uint16_t mask) {
    const auto [at, is_new] = orders_.try_emplace(mask);
    Order& order = at->second;
    if (!is_new) {
        return order;
    }
    const auto masked = [&](std::uint32_t point) {
        const PciAddress where = address(point);
        return value_of(where.segment, where.rid & mask);
    };
    order.points.resize(count_points());
    std::iota(order.points.begin(), order.points.end(), 0U);
    std::ranges::stable_sort(order.points, {}, masked);
    order.values.reserve(order.points.size());
    for (const std::uint32_t point : order.points) {
        order.values.push_back(masked(point));
    }
    return order;
}

SelectorIndex::Added SelectorIndex::add_range(Order& order, std::uint64_t first, std::uint64_t last,
                                              std::uint32_t fact) {
    const auto low = std::ranges::lower_bound(order.values, first);
    const auto high = std::ranges::upper_bound(order.values, last);
    if (low >= high) {
        return Added::selects_nothing;
    }
    order.intervals.push_back({static_cast<std::uint32_t>(low - order.values.begin()),
                               static_cast<std::uint32_t>(high - order.values.begin() - 1), fact});
    return Added::added;
}

SelectorIndex::Added SelectorIndex::add(const Selector& selector, std::uint16_t rid_mask,
                                        std::uint32_t fact) {
    if (const auto* range = std::get_if<PciRange>(&selector)) {
        if (!orders_.contains(rid_mask) && orders_.size() > most_masks) {
            return Added::too_many_masks;
        }
        return add_range(order_of_mask(rid_mask), value_of(range->segment, range->first_rid),
                         value_of(range->segment, range->last_rid), fact);
    }
    if (const auto* rest = std::get_if<PciRest>(&selector)) {
        return add_range(order_of_mask(0xffff), value_of(rest->segment, 0), value_of(rest->segment, 0xffff),
                         fact);
    }
    const auto* path = std::get_if<PciPath>(&selector);
    if (path == nullptr) {
        return Added::selects_nothing;
    }
    const std::uint32_t function = topology_.walk(*path);
    if (function == PciTopology::none) {
        return Added::selects_nothing;
    }
    if (path->is_bridge) {
        tree_.intervals.push_back({topology_.position(function), topology_.last_position(function), fact});
    } else {
        add_function(function, fact);
    }
    return Added::added;
}

void SelectorIndex::add_function(std::uint32_t function, std::uint32_t fact) {
    tree_.intervals.push_back({topology_.position(function), topology_.position(function), fact});
}

void SelectorIndex::collect(Order& order, std::size_t most, std::vector<std::vector<std::uint32_t>>& found) {
    if (order.intervals.empty()) {
        return;
    }
    std::ranges::sort(order.intervals, {}, &Interval::first);
    std::vector<const Interval*> by_last;
    by_last.reserve(order.intervals.size());
    for (const Interval& interval : order.intervals) {
        by_last.push_back(&interval);
    }
    std::ranges::sort(by_last, {}, &Interval::last);
    std::multiset<std::uint32_t> open;
    std::size_t next = 0;
    std::size_t next_last = 0;
    for (std::uint32_t position = 0; position < order.points.size(); ++position) {
        for (; next < order.intervals.size() && order.intervals[next].first == position; ++next) {
            open.insert(order.intervals[next].fact);
        }
        auto& facts = found[order.points[position]];
        std::size_t room = most;
        for (auto fact = open.begin(); fact != open.end() && room > 0; ++fact, --room) {
            facts.push_back(*fact);
        }
        for (; next_last < by_last.size() && by_last[next_last]->last == position; ++next_last) {
            open.erase(open.find(by_last[next_last]->fact));
        }
    }
}

std::vector<std::vector<std::uint32_t>> SelectorIndex::facts_of_points(std::size_t most) {
    std::vector<std::vector<std::uint32_t>> found(count_points());
    collect(tree_, most, found);
    for (auto& [mask, order] : orders_) {
        collect(order, most, found);
    }
    for (auto& facts : found) {
        std::ranges::sort(facts);
        const auto again = std::ranges::unique(facts);
        facts.erase(again.begin(), again.end());
        facts.resize(std::min(facts.size(), most));
    }
    return found;
}

}  // namespace guestmem::dma
