// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/assemble.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "guestmem/base/diagnostic.hpp"
#include "guestmem/dma/discover/smmu_arguments.hpp"
#include "guestmem/dma/discover/smmu_schema.hpp"
#include "guestmem/dma/first_said.hpp"

namespace guestmem::dma {
namespace {

std::span<const Source> sources_of(SmmuType type) {
    static constexpr std::array vtd{Source::dmar};
    static constexpr std::array amdvi{Source::ivrs};
    static constexpr std::array smmu{Source::iort, Source::device_tree};
    static constexpr std::array virtio{Source::viot, Source::device_tree};
    static constexpr std::array rcar{Source::device_tree};
    switch (type) {
        case SmmuType::vtd: return vtd;
        case SmmuType::amdvi: return amdvi;
        case SmmuType::armsmmu:
        case SmmuType::armsmmuv3: return smmu;
        case SmmuType::virtio_iommu: return virtio;
        case SmmuType::rcar3: return rcar;
    }
    return {};
}

bool is_of(SmmuType type, Source source) {
    return std::ranges::find(sources_of(type), source) != sources_of(type).end();
}

std::string names_of(std::span<const Source> sources, std::string_view between) {
    std::string text;
    for (const Source source : sources)
        text += fmt::format("{}{}", text.empty() ? "" : between, to_string(source));
    return text;
}

/// The sources of facts that lost, each once: "DMAR", "IORT and VIOT".
template <typename Facts>
std::string overridden_sources(const Facts& facts) {
    std::vector<Source> sources;
    for (const auto* fact : facts)
        if (std::ranges::find(sources, fact->origin.source) == sources.end())
            sources.push_back(fact->origin.source);
    return names_of(sources, " and ");
}

/// How the user's units and the firmware's are one.
class UnitNames {
public:
    explicit UnitNames(std::span<const UnitFact> users) {
        for (const UnitFact& unit : users) {
            names_.insert(unit.name);
            if (unit.registers) by_registers_.emplace(*unit.registers, unit.name);
            if (unit.function) by_function_.emplace(*unit.function, unit.name);
        }
    }

    void add_firmware(const UnitFact& unit) {
        firmware_.insert(unit.name);
        if (names_.contains(unit.name)) {
            renamed_.emplace(unit.name, unit.name);
        } else if (const auto same = find(by_registers_, unit.registers)) {
            renamed_.emplace(unit.name, *same);
        } else if (const auto other = find(by_function_, unit.function)) {
            renamed_.emplace(unit.name, *other);
        }
    }

    /// What the unit is called when all is assembled.
    [[nodiscard]] std::string final_name(const std::string& name) const {
        const auto found = renamed_.find(name);
        return found == renamed_.end() || names_.contains(name) ? name : found->second;
    }
    [[nodiscard]] bool is_users(const std::string& name) const { return names_.contains(name); }
    [[nodiscard]] bool is_known(const std::string& name) const {
        return names_.contains(name) || firmware_.contains(name);
    }
    [[nodiscard]] std::vector<std::string_view> all() const {
        std::set<std::string_view> names{names_.begin(), names_.end()};
        names.insert(firmware_.begin(), firmware_.end());
        return {names.begin(), names.end()};
    }

private:
    template <typename Key>
    static std::optional<std::string> find(const std::map<Key, std::string>& by,
                                           const std::optional<Key>& key) {
        const auto found = key ? by.find(*key) : by.end();
        return found == by.end() ? std::nullopt : std::optional{found->second};
    }

    std::set<std::string> names_;
    std::set<std::string> firmware_;
    std::map<std::uint64_t, std::string> by_registers_;
    std::map<PciAddress, std::string> by_function_;
    std::map<std::string, std::string> renamed_;
};

class Assembler {
public:
    Assembler(std::span<const FirmwareFacts> firmware, const UserWords& words)
        : all_(firmware), words_(words), names_(words.facts.units) {}

    Result<SourceFacts> run() {
        GM_TRY(choose_sources());
        for (const FirmwareFacts* source : firmware_)
            for (const UnitFact& unit : source->facts.units) names_.add_firmware(unit);
        GM_TRY(check_names());
        lay_units();
        lay_covers();
        lay_reserved();
        for (const FirmwareFacts* source : firmware_) {
            lay_platform(source->facts.platform);
            std::ranges::copy(source->facts.complaints, std::back_inserter(out_.complaints));
        }
        std::ranges::copy(words_.facts.complaints, std::back_inserter(out_.complaints));
        std::ranges::move(complaints_, std::back_inserter(out_.complaints));
        return std::move(out_);
    }

private:
    // --- sources ---

    Result<void> choose_sources() {
        bool has_acpi_units = false;
        for (const FirmwareFacts& source : all_) {
            const bool is_ignored = std::ranges::any_of(words_.types, [&](const auto& type) {
                return type.second.value == FirmwareUse::ignore && is_of(type.first, source.source);
            });
            if (is_ignored) continue;
            firmware_.push_back(&source);
            has_acpi_units |= source.source != Source::device_tree && !source.facts.units.empty();
        }
        std::erase_if(firmware_, [&](const FirmwareFacts* source) {
            const bool is_extra = has_acpi_units && source->source == Source::device_tree;
            if (is_extra && !source->facts.units.empty())
                complain({.source = Source::device_tree},
                         "left out: ACPI tables describe IOMMUs on this machine, too");
            return is_extra;
        });
        for (const auto& [type, use] : words_.types) {
            const bool is_there = std::ranges::any_of(
                firmware_,
                [&, wanted = type](const FirmwareFacts* source) { return is_of(wanted, source->source); });
            if (use.value == FirmwareUse::require && !is_there)
                return Error{Errc::not_found,
                             fmt::format("{}: smmu {} require: firmware says nothing in a source for it ({})",
                                         use.place, row_of(type).text, names_of(sources_of(type), " or "))};
        }
        return {};
    }

    void complain(Origin origin, std::string text) {
        complaints_.push_back({.origin = std::move(origin), .text = std::move(text)});
    }

    // --- names and modes ---

    Result<void> check_names() const {
        std::vector<std::string> wrong;
        const std::vector<std::string_view> known = names_.all();
        const auto check = [&](const std::string& name, const std::string& place) {
            if (name.empty() || names_.is_known(name)) return;
            if (wrong.size() >= max_diagnostics) return;
            // Distances to many names cost; who has that many is shown no guess.
            constexpr std::size_t most = 256;
            const std::string_view closest =
                known.size() <= most ? closest_word(name, known) : std::string_view{};
            wrong.push_back(fmt::format("{}: neither these words nor the firmware have a unit '{}'{}", place,
                                        name,
                                        closest.empty() ? "; declare it: unit NAME PARAM"
                                                        : fmt::format("; did you mean '{}'?", closest)));
        };
        for (const CoverFact& cover : words_.facts.covers) check(cover.unit, cover.origin.place);
        for (const auto& [name, mode] : words_.unit_modes) check(name, mode.place);
        if (wrong.empty()) return {};
        return Error{Errc::invalid_argument, fmt::format("{}", fmt::join(wrong, "\n"))};
    }

    /// The scopes of units by what they are called in the end; the user's own name weighs more than firmware's.
    [[nodiscard]] std::map<std::string, LayMode> final_modes() const {
        std::map<std::string, LayMode> modes;
        for (const auto& [name, mode] : words_.unit_modes)
            if (!names_.is_users(name)) modes[names_.final_name(name)] = mode.value;
        for (const auto& [name, mode] : words_.unit_modes)
            if (names_.is_users(name)) modes[name] = mode.value;
        return modes;
    }
    [[nodiscard]] LayMode mode_of_unit(const std::string& final_name) const {
        const auto found = unit_modes_.find(final_name);
        return found == unit_modes_.end() ? words_.mode.value : found->second;
    }
    [[nodiscard]] std::optional<LayMode> mode_of_device(const Selector& device) const {
        const auto found = words_.device_modes.find(to_string(device));
        return found == words_.device_modes.end() ? std::nullopt : std::optional{found->second.value};
    }

    // --- units ---

    void lay_units() {
        unit_modes_ = final_modes();
        std::map<std::string, std::vector<const UnitFact*>> replaced;
        std::vector<UnitFact> all;
        for (const FirmwareFacts* source : firmware_) {
            for (const UnitFact& unit : source->facts.units) {
                const std::string name = names_.final_name(unit.name);
                if (names_.is_users(name)) replaced[name].push_back(&unit);
                if (names_.is_users(name) && mode_of_unit(name) == LayMode::overrides) continue;
                all.push_back(unit);
                all.back().name = name;
            }
        }
        for (const UnitFact& unit : words_.facts.units) {
            all.push_back(unit);
            const auto found = replaced.find(unit.name);
            if (found == replaced.end()) continue;
            complain_of_several(unit, found->second);
            if (mode_of_unit(unit.name) == LayMode::overrides) take_over(all.back(), found->second);
        }
        put_side_by_side(std::move(all));
    }

    void complain_of_several(const UnitFact& unit, std::span<const UnitFact* const> firmware) {
        std::set<std::string_view> names;
        for (const UnitFact* one : firmware) names.insert(one->name);
        if (names.size() > 1)
            complain(unit.origin, fmt::format("unit {} is several units of the firmware: {}", unit.name,
                                              fmt::join(names, ", ")));
    }

    static void take_over(UnitFact& unit, std::span<const UnitFact* const> firmware) {
        unit.origin.overrides = overridden_sources(firmware);
        for (const UnitFact* one : firmware) {
            const bool has_same_place = !one->registers || one->registers == unit.registers;
            if (unit.registers_bytes == 0 && has_same_place) unit.registers_bytes = one->registers_bytes;
        }
        if (!unit.function) unit.segment = firmware.front()->segment;
    }

    void put_side_by_side(std::vector<UnitFact> all) {
        std::map<std::string, std::size_t> place;
        std::vector<std::pair<std::size_t, UnitFact>> sorted;
        for (UnitFact& unit : all) {
            const std::size_t at = place.emplace(unit.name, place.size()).first->second;
            sorted.emplace_back(at, std::move(unit));
        }
        std::ranges::stable_sort(sorted, {}, &std::pair<std::size_t, UnitFact>::first);
        for (auto& [at, unit] : sorted) {
            const bool is_same = !out_.units.empty() && out_.units.back().name == unit.name;
            if (is_same) complain_of_contradiction(unit);
            if (!is_same) said_ = unit;
            out_.units.push_back(std::move(unit));
        }
    }

    /// Compares with all that was said of the unit before, of which the first counts.
    void complain_of_contradiction(const UnitFact& unit) {
        const auto differ = [&](std::string_view what, const std::string& before, const std::string& after) {
            complain(unit.origin, fmt::format("unit {}: {} {} contradicts {} of {}, which is kept", unit.name,
                                              what, after, before, to_string(said_.origin)));
        };
        if (unit.kind != UnitKind::other && said_.kind != UnitKind::other && unit.kind != said_.kind)
            differ("type", std::string{to_string(said_.kind)}, std::string{to_string(unit.kind)});
        if (unit.registers && said_.registers && unit.registers != said_.registers)
            differ("registers at", fmt::format("{:#x}", *said_.registers),
                   fmt::format("{:#x}", *unit.registers));
        if (unit.function && said_.function && unit.function != said_.function)
            differ("function", to_string(*said_.function), to_string(*unit.function));
        if (!said_.registers) said_.registers = unit.registers;
        if (!said_.function) said_.function = unit.function;
        if (said_.kind == UnitKind::other) said_.kind = unit.kind;
    }

    // --- covers ---

    void lay_covers() {
        std::vector<const CoverFact*> firmware;
        for (const FirmwareFacts* source : firmware_)
            for (const CoverFact& cover : source->facts.covers) firmware.push_back(&cover);
        std::vector<Selector> devices;
        for (const CoverFact& cover : words_.facts.covers) devices.push_back(cover.which);
        FirstSaid first{devices};
        for (std::size_t at = 0; at < firmware.size(); ++at)
            first.tell(firmware[at]->which, firmware[at]->identity.rid_mask, at);

        std::vector<CoverFact> merged;
        for (std::size_t at = 0; at < devices.size(); ++at) {
            CoverFact cover = words_.facts.covers[at];
            cover.unit = names_.final_name(cover.unit);
            const auto lost = first.first_of(at);
            const LayMode mode = mode_of_device(cover.which).value_or(mode_of_unit(cover.unit));
            if (mode == LayMode::overrides) {
                cover.is_override = true;
                if (lost) cover.origin.overrides = to_string(firmware[*lost]->origin.source);
                out_.covers.push_back(std::move(cover));
            } else {
                if (lost) complain_of_merge(cover, *firmware[*lost]);
                merged.push_back(std::move(cover));
            }
        }
        const auto copy = [&](bool is_rest) {
            for (const CoverFact* cover : firmware) {
                if (std::holds_alternative<PciRest>(cover->which) != is_rest) continue;
                out_.covers.push_back(*cover);
                out_.covers.back().unit = names_.final_name(cover->unit);
            }
        };
        copy(false);
        std::ranges::move(merged, std::back_inserter(out_.covers));
        copy(true);
    }

    void complain_of_merge(const CoverFact& cover, const CoverFact& firmware) {
        const std::string unit = names_.final_name(firmware.unit);
        if (std::holds_alternative<PciRest>(firmware.which) || unit == cover.unit) return;
        complain(cover.origin,
                 fmt::format("{} is behind {}: {} has it behind {}, which is kept; `override {}` changes it",
                             to_string(cover.which), cover.unit, to_string(firmware.origin),
                             unit.empty() ? "no unit" : unit, to_smmu_device(cover.which)));
    }

    // --- reserved ranges ---

    void lay_reserved() {
        std::vector<const ReservedFact*> firmware;
        for (const FirmwareFacts* source : firmware_)
            for (const ReservedFact& fact : source->facts.reserved) firmware.push_back(&fact);
        std::vector<Selector> devices;
        for (const ReservedFact& fact : words_.facts.reserved) devices.push_back(fact.who.front());
        FirstSaid first{devices};
        for (std::size_t at = 0; at < firmware.size(); ++at) {
            if (firmware[at]->who.empty()) first.tell_of_all(at);
            for (const Selector& who : firmware[at]->who) first.tell(who, 0xffff, at);
        }
        std::vector<ReservedFact> merged;
        for (std::size_t at = 0; at < devices.size(); ++at) {
            ReservedFact fact = words_.facts.reserved[at];
            if (mode_of_device(devices[at]).value_or(words_.mode.value) == LayMode::overrides) {
                fact.is_override = true;
                if (const auto lost = first.first_of(at))
                    fact.origin.overrides = to_string(firmware[*lost]->origin.source);
                out_.reserved.push_back(std::move(fact));
            } else {
                merged.push_back(std::move(fact));
            }
        }
        for (const ReservedFact* fact : firmware) out_.reserved.push_back(*fact);
        std::ranges::move(merged, std::back_inserter(out_.reserved));
    }

    void lay_platform(const PlatformFacts& platform) {
        const auto keep_first = [](auto& to, const auto& from) {
            if (!to) to = from;
        };
        keep_first(out_.platform.address_bits, platform.address_bits);
        keep_first(out_.platform.has_interrupt_remapping, platform.has_interrupt_remapping);
        keep_first(out_.platform.is_protected_from_start, platform.is_protected_from_start);
    }

    std::span<const FirmwareFacts> all_;
    const UserWords& words_;
    UnitNames names_;
    std::vector<const FirmwareFacts*> firmware_;  ///< of all, those that count
    std::map<std::string, LayMode> unit_modes_;
    UnitFact said_;
    SourceFacts out_;
    std::vector<Complaint> complaints_;
};

/// Leaves in `taken` what counts beside the user's overriding words.
template <typename Fact>
void set_overridden_aside(std::vector<const Fact*>& taken, std::vector<const Fact*>& overridden) {
    if (std::ranges::none_of(taken, &Fact::is_override)) return;
    const auto lost = std::ranges::stable_partition(taken, &Fact::is_override);
    overridden.assign(lost.begin(), lost.end());
    taken.erase(lost.begin(), lost.end());
}

template <typename Fact>
std::vector<Origin> origins_of(const std::vector<const Fact*>& taken,
                               const std::vector<const Fact*>& overridden) {
    std::vector<Origin> origins;
    const std::string lost = overridden_sources(overridden);
    for (const Fact* fact : taken) {
        origins.push_back(fact->origin);
        if (!lost.empty()) origins.back().overrides = lost;
    }
    return origins;
}

}  // namespace

Result<SourceFacts> assemble(std::span<const FirmwareFacts> firmware, const UserWords& words) {
    return Assembler{firmware, words}.run();
}

CoverChoice choose_covers(std::span<const CoverFact* const> selecting) {
    CoverChoice choice;
    choice.taken.assign(selecting.begin(), selecting.end());
    set_overridden_aside(choice.taken, choice.overridden);
    const auto is_rest = [](const CoverFact* cover) { return std::holds_alternative<PciRest>(cover->which); };
    if (!std::ranges::all_of(choice.taken, is_rest)) std::erase_if(choice.taken, is_rest);
    const auto others = std::ranges::stable_partition(
        choice.taken, [&, unit = choice.taken.empty() ? std::string{} : choice.taken.front()->unit](
                          const CoverFact* cover) { return cover->unit == unit; });
    choice.contradicting.assign(others.begin(), others.end());
    choice.taken.erase(others.begin(), others.end());
    choice.origins = origins_of(choice.taken, choice.overridden);
    return choice;
}

ReservedChoice choose_reserved(std::span<const ReservedFact* const> selecting) {
    ReservedChoice choice;
    choice.taken.assign(selecting.begin(), selecting.end());
    set_overridden_aside(choice.taken, choice.overridden);
    choice.origins = origins_of(choice.taken, choice.overridden);
    return choice;
}

}  // namespace guestmem::dma
