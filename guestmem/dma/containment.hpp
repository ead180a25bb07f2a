// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "guestmem/dma/inventory.hpp"

/// Devices that belong together, and why: disjoint sets in which each union remembers its reason.
///
/// Contract: at first each device is alone. A join of two devices that are together already changes nothing and
/// leaves no trace, so that the first reason stays, and the joins of a containment with n devices are n - 1 and
/// connect all of them.
/// Cost: nearly constant for a join; n log n for take().
/// Threads: one at a time.

namespace guestmem::dma {

class ContainmentSet {
public:
    explicit ContainmentSet(std::size_t count_devices);

    [[nodiscard]] bool is_joined(std::size_t one, std::size_t other) const;
    /// True when they were apart.
    bool join(JoinReason reason, std::size_t one, std::size_t other, std::string text);
    /// By their first devices; sets each device's containment and each containment's kernel groups.
    [[nodiscard]] std::vector<Containment> take(std::vector<Device>& devices);

private:
    [[nodiscard]] std::uint32_t root(std::size_t device) const;

    mutable std::vector<std::uint32_t> parents_;
    std::vector<std::uint32_t> sizes_;
    std::vector<Join> joins_;
};

}  // namespace guestmem::dma
