// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include "guestmem/dma/discover/smmu_lexer.hpp"
#include "guestmem/dma/discover/smmu_words.hpp"

/// Turns tokens of smmuman's language into what they say, option by option.
///
/// Contract: any tokens give UserWords, and findings in `sources` about each option that is unknown or has an argument
/// that it cannot have; after a mistake it goes on at the next option. With findings the words are not to be used. At
/// the end the whole is looked at: sets that nobody declares, units that are one, a device behind two units, `use`
/// parameters that the unit's type does not have or cannot do without.
/// Cost: n log n in the tokens.
/// Threads: any.

namespace guestmem::dma {

[[nodiscard]] UserWords parse_smmu_tokens(std::span<const SmmuToken> tokens, SmmuSources& sources);

}  // namespace guestmem::dma
