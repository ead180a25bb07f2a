// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/dma/containment.hpp"
#include "guestmem/dma/device_place.hpp"

/// Devices whose requests a unit cannot tell apart, since they arrive with the same id.
///
/// Concepts: a stream id may have bits that are ignored (SMMUv2's masks): two ids are the same when they differ in
/// bits only that one of them ignores.
/// Contract: joins devices of one unit with one id. On AMD-Vi the reason is the alias that the table gives.
/// Limits: most_masks different masks per unit; with more, all devices of the unit are joined: each pair of masks costs
/// a search.
/// Cost: n log n in ids.
/// Threads: one at a time.

namespace guestmem::dma {

struct UnitId {
    std::uint32_t unit = 0;
    std::uint32_t device = 0;
    DeviceId id = {};
};

inline constexpr std::size_t most_masks_of_unit = 8;

void join_shared(std::vector<UnitId> ids, const std::vector<Unit>& units, const std::vector<Device>& devices,
                 ContainmentSet& set);

}  // namespace guestmem::dma
