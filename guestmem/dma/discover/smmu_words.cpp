// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/smmu_words.hpp"

#include <fmt/format.h>

#include <iterator>

#include "guestmem/dma/discover/smmu_arguments.hpp"
#include "guestmem/dma/discover/smmu_parser.hpp"
#include "guestmem/dma/discover/smmu_schema.hpp"
#include "guestmem/dma/discover/smmu_units.hpp"

namespace guestmem::dma {
namespace {

Result<UserWords> finish(std::span<const SmmuToken> tokens, SmmuSources& sources) {
    UserWords words = parse_smmu_tokens(tokens, sources);
    if (sources.has_findings()) return sources.to_error();
    return words;
}

std::string range_text(std::uint64_t first, std::uint64_t last, bool can_read, bool can_write,
                       bool can_execute) {
    return fmt::format("{:#x},{},{}{}{}", first, last - first + 1, can_read ? "r" : "", can_write ? "w" : "",
                       can_execute ? "x" : "");
}

std::string smmu_line(const UserWords& words, SmmuType type) {
    const auto found = words.types.find(type);
    const FirmwareUse use = found == words.types.end() ? FirmwareUse::use : found->second.value;
    const std::string_view parameter = use == FirmwareUse::require  ? " require"
                                       : use == FirmwareUse::ignore ? " ignore"
                                                                    : "";
    return fmt::format("smmu {}{}\n", row_of(type).text, parameter);
}

std::string_view mode_text(LayMode mode) { return mode == LayMode::merges ? "merge" : "override"; }

/// "0000:00:02.0" is the key of a scope, pci:0:2.0 its word.
std::string scope_text(const std::string& device) {
    const auto address = parse_pci_address(device);
    return address ? to_smmu_device(*address) : device;
}

void write_modes(const UserWords& words, std::string& text) {
    auto to = std::back_inserter(text);
    if (!words.mode.place.empty()) fmt::format_to(to, "{}\n", mode_text(words.mode.value));
    for (const auto& [unit, mode] : words.unit_modes)
        fmt::format_to(to, "{} unit:{}\n", mode_text(mode.value), unit);
    for (const auto& [device, mode] : words.device_modes)
        fmt::format_to(to, "{} {}\n", mode_text(mode.value), scope_text(device));
}

}  // namespace

Result<UserWords> read_smmu_words(std::span<const std::string> words, const SmmuLoader& loader) {
    SmmuSources sources;
    return finish(read_smmu_tokens(words, loader, sources), sources);
}

Result<UserWords> read_smmu_text(std::string_view text, const std::string& file_name,
                                 const SmmuLoader& loader) {
    SmmuSources sources;
    return finish(read_smmu_tokens(text, file_name, loader, sources), sources);
}

std::string to_smmu_text(const UserWords& words) {
    std::string text;
    auto to = std::back_inserter(text);
    for (const auto& [type, use] : words.types) text += smmu_line(words, type);
    for (std::size_t at = 0; at < words.facts.units.size(); ++at) {
        const UnitDetails& details = words.details[at];
        const UnitFact& unit = words.facts.units[at];
        fmt::format_to(to, "{}unit {} {}\n", smmu_line(words, details.type), unit.name,
                       to_unit_parameter(unit, details));
    }
    for (const Said<Selector>& device : words.devices)
        fmt::format_to(to, "device {}\n", to_smmu_device(device.value));
    for (const CoverFact& cover : words.facts.covers) {
        const auto id = cover.identity.first_id;
        fmt::format_to(to, "device {} use {}{}\n", to_smmu_device(cover.which), cover.unit,
                       id ? fmt::format(" {}", *id) : std::string{});
    }
    for (const AllowSet& set : words.allowed) {
        for (const Said<Selector>& device : set.devices)
            fmt::format_to(to, "device {} {}\n", to_smmu_device(device.value), set.name);
        for (const AllowedRange& range : set.ranges)
            fmt::format_to(
                to, "allow {} {}\n", set.name,
                range_text(range.first, range.last, range.can_read, range.can_write, range.can_execute));
    }
    for (const ReservedFact& fact : words.facts.reserved)
        fmt::format_to(to, "reserved {} {}\n", to_smmu_device(fact.who.front()),
                       range_text(fact.first, fact.last, fact.can_read, fact.can_write, false));
    write_modes(words, text);
    if (words.debug) fmt::format_to(to, "debug {}\n", words.debug->value);
    if (words.foreground) text += "foreground\n";
    if (words.safety)
        fmt::format_to(to, "safety {}\n", words.safety->value == SafetyMode::none ? "none" : "warn");
    if (words.user) fmt::format_to(to, "user {}\n", words.user->value);
    return text;
}

}  // namespace guestmem::dma
