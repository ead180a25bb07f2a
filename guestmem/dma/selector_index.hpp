// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "guestmem/dma/pci_topology.hpp"

/// Which facts select which PCI functions, without asking each fact about each function.
///
/// Concepts: a selector is an interval: of requester ids (one order of the functions for each mask), or of the
/// preorder of the tree (a bridge and all below it). A sweep over each order keeps the facts that are open. Points
/// are the functions and, after them, further requester ids that are asked about (aliases).
/// Contract: facts are numbered in their order; of each point the lowest facts that select it are found, ascending, at
/// most so many. PciRest selects the whole segment: whoever asks knows whether it counts. What is not PCI selects
/// nothing here.
/// Limits: most_masks masks besides 0xffff; a fact with one more is refused, since each costs a sorted order.
/// Cost: n log n in facts and points, and the facts that are returned.
/// Threads: one at a time.

namespace guestmem::dma {

class SelectorIndex {
public:
    static constexpr std::size_t most_masks = 16;

    SelectorIndex(const PciTopology& topology, std::span<const PciAddress> further_points);

    enum class Added : std::uint8_t { added, selects_nothing, too_many_masks };
    Added add(const Selector& selector, std::uint16_t rid_mask, std::uint32_t fact);
    void add_function(std::uint32_t function, std::uint32_t fact);

    [[nodiscard]] std::size_t count_points() const { return count_functions_ + further_points_.size(); }
    /// For each point the facts that select it, ascending, the first `most` of them.
    [[nodiscard]] std::vector<std::vector<std::uint32_t>> facts_of_points(std::size_t most);

private:
    struct Interval {
        std::uint32_t first = 0;  ///< positions
        std::uint32_t last = 0;
        std::uint32_t fact = 0;
    };
    struct Order {
        std::vector<std::uint64_t> values;  ///< ascending; empty in the order of the tree
        std::vector<std::uint32_t> points;
        std::vector<Interval> intervals;
    };

    [[nodiscard]] PciAddress address(std::uint32_t point) const;
    Order& order_of_mask(std::uint16_t mask);
    static Added add_range(Order& order, std::uint64_t first, std::uint64_t last, std::uint32_t fact);
    static void collect(Order& order, std::size_t most, std::vector<std::vector<std::uint32_t>>& found);

    const PciTopology& topology_;
    std::size_t count_functions_;
    std::vector<PciAddress> further_points_;
    std::map<std::uint16_t, Order> orders_;  ///< by mask
    Order tree_;
};

}  // namespace guestmem::dma
