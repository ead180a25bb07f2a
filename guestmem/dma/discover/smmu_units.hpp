// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/dma/discover/smmu_arguments.hpp"
#include "guestmem/dma/discover/smmu_words.hpp"

/// The parameter of `unit`, which each type of IOMMU has in a form of its own.
///
/// Contract: read_smmu_unit() gives what the parameter says, without name and origin, or nothing and has told why.
/// to_unit_parameter() writes it again.
/// Limits: max_reserved_ids, a finding.
/// Threads: any.

namespace guestmem::dma {

/// An SMMUv2 has 128 stream mapping groups at most; more ids than that cannot be kept from anybody.
inline constexpr std::size_t max_reserved_ids = 128;

struct SmmuUnit {
    UnitFact fact = {};
    UnitDetails details = {};
    std::vector<std::string> notes = {};  ///< what is understood and has no effect here
};

[[nodiscard]] std::optional<SmmuUnit> read_smmu_unit(SmmuType type, const SmmuPiece& parameter,
                                                     SmmuSources& sources);
[[nodiscard]] std::string to_unit_parameter(const UnitFact& fact, const UnitDetails& details);

/// Of `smmu rcar3`: PADDR,FAULT_IRQ,FAULT_BIT[,SOC.REV...]. False, and told, when it is none.
[[nodiscard]] bool check_rcar_parameter(const SmmuPiece& parameter, SmmuSources& sources);

/// "vtd@fed90000" is a vtd; nothing for a name that firmware's readers do not give.
[[nodiscard]] std::optional<SmmuType> type_of_firmware_name(std::string_view name);

}  // namespace guestmem::dma
