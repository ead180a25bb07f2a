// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>

#include <string>
#include <vector>

#include "guestmem/dma/facts.hpp"

/// Facts as short texts, so that a test compares what a table says in one list.
///
/// Contract: a cover is "0000:00:00.0-0000:ff:1f.7 -> smmuv3@9050000 0x0"; "none" is no unit; behind the first id
/// comes "shared", "rid&MASK" and "~IGNORED_BITS" where they apply.
/// Threads: any.

namespace guestmem::dma::testing {

inline std::string identity_text(const IdentityRule& identity) {
    std::string text = identity.first_id ? fmt::format(" {:#x}", *identity.first_id) : std::string{};
    if (identity.is_shared) text += " shared";
    if (identity.rid_mask != 0xffff) text += fmt::format(" rid&{:#x}", identity.rid_mask);
    if (identity.ignored_bits != 0) text += fmt::format(" ~{:#x}", identity.ignored_bits);
    return text;
}

inline std::vector<std::string> cover_texts(const SourceFacts& facts) {
    std::vector<std::string> texts;
    for (const CoverFact& cover : facts.covers)
        texts.push_back(fmt::format("{} -> {}{}", to_string(cover.which),
                                    cover.unit.empty() ? "none" : cover.unit, identity_text(cover.identity)));
    return texts;
}

/// "0x1000-0x1fff direct: 0000:00:02.0, 0000:00:03.0"; "all" is nobody named.
inline std::vector<std::string> reserved_texts(const SourceFacts& facts) {
    std::vector<std::string> texts;
    for (const ReservedFact& fact : facts.reserved) {
        std::string text = fmt::format("{:#x}-{:#x} {}:", fact.first, fact.last, to_string(fact.kind));
        for (const Selector& selector : fact.who) text += " " + to_string(selector);
        texts.push_back(text + (fact.who.empty() ? " all" : ""));
    }
    return texts;
}

inline std::vector<std::string> unit_texts(const SourceFacts& facts) {
    std::vector<std::string> texts;
    for (const UnitFact& unit : facts.units) texts.push_back(unit.name);
    return texts;
}

inline std::vector<std::string> complaint_texts(const SourceFacts& facts) {
    std::vector<std::string> texts;
    for (const Complaint& complaint : facts.complaints) texts.push_back(complaint.text);
    return texts;
}

}  // namespace guestmem::dma::testing
