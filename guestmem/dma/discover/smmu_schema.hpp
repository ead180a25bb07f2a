// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "guestmem/dma/discover/smmu_words.hpp"
#include "guestmem/dma/facts.hpp"

/// smmuman's option language as tables: the one source for the parser, for what errors say, and for the reference.
///
/// Concepts: an option is a word and its arguments. What a unit's parameter and a `use` parameter mean is a matter of
/// the type that the last `smmu` named. Language says whose a word or type is, Support what comes of it here.
/// Contract: a text occurs once per table. Rows are in the order in which the reference shows them.
/// Threads: any; constant tables.

namespace guestmem::dma {

enum class SmmuWord : std::uint8_t {
    smmu,
    unit,
    device,
    use,
    allow,
    reserved,
    merges,
    overrides,
    debug,
    foreground,
    safety,
    user,
};

enum class SmmuLanguage : std::uint8_t { qnx, ours };
enum class SmmuSupport : std::uint8_t {
    works,
    service_only,  ///< read and kept for a service; who looks at the machine or plans does nothing with it
};

struct SmmuWordRow {
    std::string_view text;
    SmmuWord word;
    std::string_view argument;  ///< as the reference shows it; empty: it has none
    SmmuLanguage language = SmmuLanguage::qnx;
    SmmuSupport support = SmmuSupport::works;
    std::string_view help;
};

struct SmmuTypeRow {
    std::string_view text;
    SmmuType type;
    UnitKind kind;
    std::string_view parameter;       ///< of `smmu`
    std::string_view unit_parameter;  ///< of `unit`
    std::string_view use_parameter;   ///< of `use`; empty: none allowed
    bool needs_use_parameter = false;
    SmmuLanguage language = SmmuLanguage::qnx;
    std::string_view help;
};

[[nodiscard]] std::span<const SmmuWordRow> smmu_word_rows();
[[nodiscard]] std::span<const SmmuTypeRow> smmu_type_rows();

/// The row of that text, or null.
[[nodiscard]] const SmmuWordRow* find_smmu_word(std::string_view text);
[[nodiscard]] const SmmuTypeRow* find_smmu_type(std::string_view text);
[[nodiscard]] const SmmuTypeRow& row_of(SmmuType type);

/// The whole language as Markdown tables.
[[nodiscard]] std::string smmu_language_reference();

}  // namespace guestmem::dma
