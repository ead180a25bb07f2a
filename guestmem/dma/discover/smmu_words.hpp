// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/dma/discover/smmu_lexer.hpp"
#include "guestmem/dma/facts.hpp"

/// What the user says about IOMMUs, in the option language of QNX's smmuman.
///
/// Concepts: words come from a command line and from files that `@FILE` names, and are read once from start to end.
/// Units, devices and reserved ranges become the same facts that firmware tables become, with the file and line as
/// their place. `allow` names sets of memory that drivers without an API of their own may reach. smmu_schema.hpp has
/// the language as tables, docs/guide/smmu-words.md as a page.
/// Contract: any bytes give UserWords or an error (invalid_argument) whose message names every mistake with file, line
/// and column, the line, a caret and what to write instead. A typing error is told apart from a word that QNX documents
/// and this program does not do. What is understood and cannot have an effect here is a complaint in `facts`. No file
/// is opened but by the loader. Repeats: `allow`, `device`, `reserved` and `unit` of another name gather, of the others
/// the last one wins.
/// Contract: facts.covers and facts.reserved are in the order of the words; is_override in them is set by assemble().
/// Limits: those of smmu_lexer.hpp; each fact is two tokens at least, so that there are fewer than max_facts.
/// Threads: any; the loader is called from the caller's thread.
/// Example:
///     const UserWords words = GM_TRY(read_smmu_words(arguments, &read_text_file));

namespace guestmem::dma {

/// What follows `smmu`.
enum class SmmuType : std::uint8_t { vtd, armsmmu, armsmmuv3, rcar3, amdvi, virtio_iommu };

enum class FirmwareUse : std::uint8_t {
    use,      ///< if there is any
    require,  ///< it has to be there
    ignore,   ///< it is wrong
};

enum class LayMode : std::uint8_t { overrides, merges };

enum class SafetyMode : std::uint8_t { none, warn };

template <typename T>
struct Said {
    T value{};
    std::string place = {};  ///< "board.smmu:7", "command line"
};

struct AllowedRange {
    std::uint64_t first = 0;
    std::uint64_t last = 0;  ///< included
    bool can_read = true;
    bool can_write = true;
    bool can_execute = false;
    std::string place = {};
};

struct AllowSet {
    std::string name = {};
    std::vector<AllowedRange> ranges = {};     ///< in the order of the words
    std::vector<Said<Selector>> devices = {};  ///< a PciRange of one function, or an MmioDevice
};

/// What a unit's parameter says and a UnitFact has no place for.
struct UnitDetails {
    std::string name = {};
    SmmuType type = SmmuType::vtd;
    std::vector<std::uint32_t> interrupts = {};    ///< SMMUv2: context fault, global fault; R-Car: status bit
    std::optional<bool> lets_unknown_pass = {};    ///< SMMUv2: streams that nobody configured reach memory
    std::vector<std::uint32_t> reserved_ids = {};  ///< SMMUv2: stream ids that are not to be given out
    std::string board_library = {};                ///< SMMUv2: documented, not loaded here
};

struct UserWords {
    SourceFacts facts = {};                 ///< units, covers, reserved ranges, complaints; no platform facts
    std::vector<UnitDetails> details = {};  ///< as facts.units
    std::vector<AllowSet> allowed = {};     ///< in the order in which they are first named
    std::vector<Said<Selector>> devices = {};  ///< every `device`, each once, in the order of the words
    std::map<SmmuType, Said<FirmwareUse>> types = {};
    Said<LayMode> mode = {};                               ///< place is empty when nothing is said
    std::map<std::string, Said<LayMode>> unit_modes = {};  ///< by name of the unit
    /// By to_string() of the device's selector.
    std::map<std::string, Said<LayMode>> device_modes = {};
    std::optional<Said<int>> debug = {};        ///< 1 or 2
    std::optional<Said<bool>> foreground = {};  ///< true
    std::optional<Said<SafetyMode>> safety = {};
    std::optional<Said<std::string>> user = {};  ///< NAME or UID, with :GROUP behind it or without
};

/// Words such as {"@board.smmu", "smmu", "vtd"}.
[[nodiscard]] Result<UserWords> read_smmu_words(std::span<const std::string> words, const SmmuLoader& loader);
[[nodiscard]] Result<UserWords> read_smmu_text(std::string_view text, const std::string& file_name,
                                               const SmmuLoader& loader);

/// The same words again, an option on each line: read_smmu_text() of it says the same, but for places and complaints.
[[nodiscard]] std::string to_smmu_text(const UserWords& words);

}  // namespace guestmem::dma
