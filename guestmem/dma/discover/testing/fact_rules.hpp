// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <unordered_set>

#include "guestmem/base/check.hpp"
#include "guestmem/dma/discover/acpi_table.hpp"
#include "guestmem/dma/discover/testing/facts_memory.hpp"
#include "guestmem/dma/facts.hpp"

/// What holds for the facts of every table, for fuzzers.
///
/// Contract: GM_CHECK fails when a limit is broken, a cover names a unit that is not there, a unit is there twice, a
/// range or a path is not one, an origin is another source's, or a text would bring a control character to a
/// terminal.
/// Threads: any.

namespace guestmem::dma::testing {

inline bool is_printable(std::string_view text) {
    return std::ranges::all_of(text, [](char c) { return c >= ' ' && c <= '~'; });
}

inline void check_origin(const Origin& origin, Source source) {
    GM_CHECK(origin.source == source && origin.overrides.empty() && is_printable(origin.place));
}

inline void check_selector(const Selector& selector) {
    GM_CHECK(is_printable(to_string(selector)));
    if (const auto* const range = std::get_if<PciRange>(&selector))
        GM_CHECK(range->first_rid <= range->last_rid);
    if (const auto* const path = std::get_if<PciPath>(&selector)) {
        GM_CHECK(!path->hops.empty());
        for (const PciHop& hop : path->hops) GM_CHECK(hop.device < 32 && hop.function < 8);
    }
    if (const auto* const named = std::get_if<NamedDevice>(&selector)) GM_CHECK(!named->path.empty());
}

/// Checks the facts that a table of table_bytes gave.
inline void check_facts(const SourceFacts& facts, Source source, std::size_t table_bytes) {
    GM_CHECK(count_of(facts) <= max_facts);
    GM_CHECK(facts.complaints.size() <= max_table_complaints + 1);
    GM_CHECK(bytes_of(facts) <= table_bytes * memory_per_table_byte + memory_beside_table_bytes);
    std::unordered_set<std::string> units;
    for (const UnitFact& unit : facts.units) {
        GM_CHECK(!unit.name.empty() && is_printable(unit.name) && units.insert(unit.name).second);
        check_origin(unit.origin, source);
    }
    for (const CoverFact& cover : facts.covers) {
        GM_CHECK(cover.unit.empty() || units.contains(cover.unit));
        check_selector(cover.which);
        check_origin(cover.origin, source);
    }
    for (const ReservedFact& range : facts.reserved) {
        GM_CHECK(range.first <= range.last);
        for (const Selector& who : range.who) check_selector(who);
        check_origin(range.origin, source);
    }
    for (const Complaint& complaint : facts.complaints) {
        GM_CHECK(!complaint.text.empty() && is_printable(complaint.text));
        check_origin(complaint.origin, source);
    }
    if (facts.platform.address_bits)
        GM_CHECK(*facts.platform.address_bits >= 1 && *facts.platform.address_bits <= 64);
}

}  // namespace guestmem::dma::testing
