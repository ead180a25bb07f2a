// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "guestmem/dma/complaint_list.hpp"
#include "guestmem/dma/host_view.hpp"

/// Which bridge stands above which PCI function.
///
/// Concepts: a function's parent is the bridge whose secondary bus it is on. A bus that no bridge has as secondary,
/// but that lies in a bridge's range, belongs to the nearest such bridge; else it is a root bus. A virtual function
/// has the parent of its physical function, since its bus number is made up. The preorder lists each bridge right
/// before all that is below it, so that a subtree is an interval of positions.
/// Contract: functions are sorted by address and each is there once; they outlive this. Indices are those of that
/// list. A bridge whose secondary bus is not above its own bus number is no parent (so that there are no loops), of
/// two bridges with one secondary bus the first is; both are complaints.
/// Cost: n log n; walk() is log n for each hop.
/// Threads: any, once made.

namespace guestmem::dma {

class PciTopology {
public:
    static constexpr std::uint32_t none = 0xffffffff;

    PciTopology(std::span<const PciFunction> functions, ComplaintList& complaints);

    [[nodiscard]] std::span<const PciFunction> functions() const { return functions_; }
    [[nodiscard]] const PciFunction& function(std::size_t index) const { return functions_[index]; }

    /// The bridge above, or none on a root bus.
    [[nodiscard]] std::uint32_t parent(std::size_t index) const { return parents_[index]; }
    [[nodiscard]] std::uint32_t find(PciAddress address) const;
    /// The function that a path leads to; none when there is no such function, or no bridge on the way.
    [[nodiscard]] std::uint32_t walk(const PciPath& path) const;

    /// Indices of functions: each bridge before what is below it.
    [[nodiscard]] std::span<const std::uint32_t> preorder() const { return preorder_; }
    /// Where a function is in preorder().
    [[nodiscard]] std::uint32_t position(std::size_t index) const { return positions_[index]; }
    /// The position of the last function below it; its own when there is none.
    [[nodiscard]] std::uint32_t last_position(std::size_t index) const { return last_positions_[index]; }

private:
    /// A bridge that leads somewhere.
    struct Way {
        std::uint32_t bus = 0;  ///< segment and secondary bus
        std::uint32_t last = 0;
        std::uint32_t bridge = none;
    };

    void find_ways(ComplaintList& complaints);
    void find_parents();
    void make_preorder();
    [[nodiscard]] std::uint32_t bridge_to(std::uint32_t bus) const;

    std::span<const PciFunction> functions_;
    std::vector<Way> ways_;  ///< ascending by bus, each bus once
    std::vector<std::uint32_t> parents_;
    std::vector<std::uint32_t> preorder_;
    std::vector<std::uint32_t> positions_;
    std::vector<std::uint32_t> last_positions_;
};

}  // namespace guestmem::dma
