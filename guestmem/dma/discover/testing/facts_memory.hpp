// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <variant>
#include <vector>

#include "guestmem/dma/facts.hpp"

/// How much memory the facts of a source take: objects, and what their strings and vectors have on the heap.
///
/// Contract: a lower bound: what the heap takes for itself beside each block is not in it.
/// Threads: any.

namespace guestmem::dma::testing {

inline std::size_t heap_bytes_of(const std::string& text) {
    return text.capacity() > std::string{}.capacity() ? text.capacity() + 1 : 0;
}

inline std::size_t heap_bytes_of(const Selector& selector) {
    if (const auto* const path = std::get_if<PciPath>(&selector))
        return path->hops.capacity() * sizeof(PciHop);
    if (const auto* const named = std::get_if<NamedDevice>(&selector)) return heap_bytes_of(named->path);
    return 0;
}

inline std::size_t bytes_of(const SourceFacts& facts) {
    std::size_t sum =
        facts.units.capacity() * sizeof(UnitFact) + facts.covers.capacity() * sizeof(CoverFact) +
        facts.reserved.capacity() * sizeof(ReservedFact) + facts.complaints.capacity() * sizeof(Complaint);
    for (const UnitFact& fact : facts.units)
        sum += heap_bytes_of(fact.name) + heap_bytes_of(fact.origin.place);
    for (const CoverFact& fact : facts.covers)
        sum += heap_bytes_of(fact.unit) + heap_bytes_of(fact.which) + heap_bytes_of(fact.origin.place);
    for (const ReservedFact& fact : facts.reserved) {
        sum += fact.who.capacity() * sizeof(Selector) + heap_bytes_of(fact.origin.place);
        for (const Selector& who : fact.who) sum += heap_bytes_of(who);
    }
    for (const Complaint& complaint : facts.complaints)
        sum += heap_bytes_of(complaint.text) + heap_bytes_of(complaint.origin.place);
    return sum;
}

/// Facts of all kinds, as max_facts counts them.
inline std::size_t count_of(const SourceFacts& facts) {
    std::size_t count = facts.units.size() + facts.covers.size() + facts.reserved.size();
    for (const ReservedFact& fact : facts.reserved) count += fact.who.size();
    return count;
}

}  // namespace guestmem::dma::testing
