// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <set>

#include "guestmem/dma/facts.hpp"

/// What facts.hpp says that a selector and an identity rule mean, for one device at a time.
///
/// Concepts: a device is a PciRange of one function or an MmioDevice, as the user's words name it. Paths have one hop.
/// Threads: any.

namespace guestmem::dma::testing {

struct Outcome {
    std::optional<std::uint64_t> unit = {};  ///< its registers
    std::set<std::uint32_t> ids = {};
    std::set<std::uint64_t> reserved = {};  ///< by where they begin

    friend bool operator==(const Outcome&, const Outcome&) = default;
};

inline std::ostream& operator<<(std::ostream& out, const Outcome& outcome) {
    return out << fmt::format("unit {:#x} ids {} reserved {}", outcome.unit.value_or(0),
                              fmt::join(outcome.ids, ","), fmt::join(outcome.reserved, ","));
}

inline bool selects(const Selector& who, std::uint16_t mask, const Selector& device) {
    if (const auto* mmio = std::get_if<MmioDevice>(&device)) {
        const auto* other = std::get_if<MmioDevice>(&who);
        return other != nullptr && other->registers == mmio->registers;
    }
    const PciRange function = std::get<PciRange>(device);
    const std::uint16_t rid = function.first_rid & mask;
    if (const auto* range = std::get_if<PciRange>(&who))
        return range->segment == function.segment && range->first_rid <= rid && rid <= range->last_rid;
    if (const auto* path = std::get_if<PciPath>(&who))
        return path->segment == function.segment &&
               pci_address(path->segment, path->start_bus, path->hops[0].device, path->hops[0].function)
                       .rid == function.first_rid;
    const auto* rest = std::get_if<PciRest>(&who);
    return rest != nullptr && rest->segment == function.segment;
}

inline void add_id(const CoverFact& cover, const Selector& device, std::set<std::uint32_t>& ids) {
    const auto* function = std::get_if<PciRange>(&device);
    const std::uint32_t rid = function == nullptr ? 0U : function->first_rid & cover.identity.rid_mask;
    const auto* range = std::get_if<PciRange>(&cover.which);
    if (!cover.identity.first_id) {
        if (function != nullptr) ids.insert(rid);
    } else {
        ids.insert(*cover.identity.first_id +
                   (range == nullptr || function == nullptr ? 0U : rid - range->first_rid));
    }
}

}  // namespace guestmem::dma::testing
