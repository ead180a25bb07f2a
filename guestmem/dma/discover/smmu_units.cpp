// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/smmu_units.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <limits>
#include <span>
#include <utility>

#include "guestmem/dma/discover/smmu_schema.hpp"

namespace guestmem::dma {
namespace {

constexpr std::uint64_t max_number = std::numeric_limits<std::uint32_t>::max();

bool complain_of_form(SmmuType type, const SmmuPiece& parameter, SmmuSources& sources) {
    const SmmuTypeRow& row = row_of(type);
    sources.complain(parameter.place,
                     fmt::format("'{}' is no unit of type {}", parameter.text.substr(0, 80), row.text),
                     fmt::format("write unit NAME {}", row.unit_parameter));
    return false;
}

bool read_numbers(std::span<const SmmuPiece> pieces, std::string_view what, std::vector<std::uint32_t>& to,
                  SmmuSources& sources) {
    for (const SmmuPiece& piece : pieces) {
        const auto number = read_smmu_number(piece, NumberStyle::plain, what, max_number, sources);
        if (!number) return false;
        to.push_back(static_cast<std::uint32_t>(*number));
    }
    return true;
}

bool read_place(const SmmuPiece& piece, UnitFact& fact, SmmuSources& sources) {
    fact.registers = read_registers(piece, sources);
    return fact.registers.has_value();
}

bool read_function(const SmmuPiece& piece, UnitFact& fact, SmmuSources& sources) {
    fact.function = read_pci_function(piece, sources);
    if (fact.function) fact.segment = fact.function->segment;
    return fact.function.has_value();
}

/// PADDR,CONTEXT_IRQ,GLOBAL_IRQ,BYPASS[,IDS[,DLL]]
bool read_smmu_v2(const SmmuPiece& parameter, SmmuUnit& unit, SmmuSources& sources) {
    const std::vector<SmmuPiece> parts = split_at(parameter, ',');
    if (parts.size() < 4 || parts.size() > 6) return complain_of_form(SmmuType::armsmmu, parameter, sources);
    const std::span all{parts};
    if (!read_place(parts[0], unit.fact, sources) ||
        !read_numbers(all.subspan(1, 2), "an interrupt", unit.details.interrupts, sources))
        return false;
    if (parts[3].text != "0" && parts[3].text != "1") {
        sources.complain(parts[3].place, "BYPASS is 0 or 1", "1 lets streams pass that nobody configured");
        return false;
    }
    unit.details.lets_unknown_pass = parts[3].text == "1";
    if (parts.size() > 4 && !parts[4].text.empty()) {
        const std::vector<SmmuPiece> ids = split_at(parts[4], ':');
        if (ids.size() > max_reserved_ids) {
            sources.complain(parts[4].place,
                             fmt::format("{} stream ids: at most {}", ids.size(), max_reserved_ids));
            return false;
        }
        if (!read_numbers(ids, "a stream id", unit.details.reserved_ids, sources)) return false;
    }
    if (parts.size() > 5) {
        if (!is_smmu_name(parts[5], "a board DLL", sources)) return false;
        unit.details.board_library = parts[5].text;
        unit.notes.push_back(
            fmt::format("documented by QNX, not supported here: board DLL {}; what it knows has to "
                        "be said in words",
                        parts[5].text));
    }
    unit.notes.emplace_back("its interrupts are the kernel's driver's: they are not used here");
    if (*unit.details.lets_unknown_pass)
        unit.notes.emplace_back(
            "streams that nobody configured pass, if the kernel agrees "
            "(arm-smmu.disable_bypass=0): devices behind it can reach all memory");
    return true;
}

/// PADDR,STATUS_BIT
bool read_rcar(const SmmuPiece& parameter, SmmuUnit& unit, SmmuSources& sources) {
    const std::vector<SmmuPiece> parts = split_at(parameter, ',');
    if (parts.size() != 2) return complain_of_form(SmmuType::rcar3, parameter, sources);
    return read_place(parts[0], unit.fact, sources) &&
           read_numbers(std::span{parts}.subspan(1), "a status bit", unit.details.interrupts, sources);
}

bool read_virtio(const SmmuPiece& parameter, SmmuUnit& unit, SmmuSources& sources) {
    constexpr std::string_view mem = "mem:";
    if (parameter.text.starts_with(mem))
        return read_place(without_prefix(parameter, mem.size()), unit.fact, sources);
    return read_function(parameter, unit.fact, sources);
}

}  // namespace

std::optional<SmmuUnit> read_smmu_unit(SmmuType type, const SmmuPiece& parameter, SmmuSources& sources) {
    SmmuUnit unit;
    unit.fact.kind = row_of(type).kind;
    unit.details.type = type;
    bool is_good = false;
    switch (type) {
        case SmmuType::vtd:
        case SmmuType::armsmmuv3: is_good = read_place(parameter, unit.fact, sources); break;
        case SmmuType::armsmmu: is_good = read_smmu_v2(parameter, unit, sources); break;
        case SmmuType::rcar3: is_good = read_rcar(parameter, unit, sources); break;
        case SmmuType::amdvi: is_good = read_function(parameter, unit.fact, sources); break;
        case SmmuType::virtio_iommu: is_good = read_virtio(parameter, unit, sources); break;
    }
    if (!is_good) return std::nullopt;
    return unit;
}

std::string to_unit_parameter(const UnitFact& fact, const UnitDetails& details) {
    if (fact.function) return to_smmu_device(*fact.function);
    std::string text = fmt::format("{}{:#x}", details.type == SmmuType::virtio_iommu ? "mem:" : "",
                                   fact.registers.value_or(0));
    for (const std::uint32_t number : details.interrupts) text += fmt::format(",{}", number);
    if (details.lets_unknown_pass) text += *details.lets_unknown_pass ? ",1" : ",0";
    if (!details.reserved_ids.empty() || !details.board_library.empty())
        text += fmt::format(",{}", fmt::join(details.reserved_ids, ":"));
    if (!details.board_library.empty()) text += "," + details.board_library;
    return text;
}

bool check_rcar_parameter(const SmmuPiece& parameter, SmmuSources& sources) {
    const std::vector<SmmuPiece> parts = split_at(parameter, ',');
    UnitFact fact;
    std::vector<std::uint32_t> numbers;
    if (parts.size() < 3) {
        sources.complain(parameter.place, fmt::format("'{}' behind smmu rcar3", parameter.text.substr(0, 80)),
                         fmt::format("write smmu rcar3 {}", row_of(SmmuType::rcar3).parameter));
        return false;
    }
    const std::span all{parts};
    if (!read_place(parts[0], fact, sources) ||
        !read_numbers(all.subspan(1, 2), "a number", numbers, sources))
        return false;
    for (const SmmuPiece& piece : all.subspan(3)) {
        const std::vector<SmmuPiece> chip = split_at(piece, '.');
        if (chip.size() != 2) {
            sources.complain(piece.place, fmt::format("'{}' is no SOC.REV", piece.text.substr(0, 80)),
                             "write two numbers with '.' between");
            return false;
        }
        if (!read_numbers(chip, "a chip's number", numbers, sources)) return false;
    }
    return true;
}

std::optional<SmmuType> type_of_firmware_name(std::string_view name) {
    static constexpr std::array<std::pair<std::string_view, SmmuType>, 5> prefixes{
        {{"vtd@", SmmuType::vtd},
         {"amdvi@", SmmuType::amdvi},
         {"smmuv2@", SmmuType::armsmmu},
         {"smmuv3@", SmmuType::armsmmuv3},
         {"virtio-iommu@", SmmuType::virtio_iommu}}};
    for (const auto& [prefix, type] : prefixes)
        if (name.starts_with(prefix)) return type;
    return std::nullopt;
}

}  // namespace guestmem::dma
