// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <ranges>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/dma/assemble.hpp"
#include "guestmem/dma/testing/fact_model.hpp"

/// A random machine with what its firmware and its user say of it, and a model of what that means.
///
/// Concepts: a World has seventeen devices, two firmware sources, and a Plan: what the user says before it is words.
/// expected() is the model: for one device it tries all that is said, one after the other, and knows nothing of names,
/// order of covers or is_override.
/// Contract: the same seed is the same world. Words of a plan never contradict each other.
/// Threads: one at a time.

namespace guestmem::dma::testing {

/// What a user may say, before it is words.
struct Plan {
    struct Use {
        std::size_t device = 0;
        std::uint64_t unit = 0;
        std::string unit_name = {};
        std::vector<std::uint32_t> ids = {};
    };
    struct Line {
        std::string about = {};  ///< lines about one thing keep their order
        std::string text = {};
    };
    std::map<std::uint64_t, std::string> names = {};  ///< of units that the user declares
    std::vector<Use> uses = {};
    std::vector<std::pair<std::size_t, std::uint64_t>> reserved = {};
    std::optional<bool> merges = {};
    std::map<std::uint64_t, bool> unit_merges = {};
    std::map<std::size_t, bool> device_merges = {};
};

class World {
public:
    explicit World(unsigned seed) : random_(seed) {
        static constexpr std::array<std::uint16_t, 7> functions{0x00, 0x08, 0x09, 0x10, 0x18, 0x100, 0x108};
        for (std::uint16_t segment = 0; segment < 2; ++segment)
            for (const std::uint16_t rid : functions)
                devices_.push_back(PciRange{.segment = segment, .first_rid = rid, .last_rid = rid});
        for (std::uint64_t at = 1; at <= 3; ++at) devices_.push_back(MmioDevice{.registers = at << 16});
        firmware_ = {make_source(Source::iort, 0), make_source(Source::viot, 2)};
        make_plan();
    }

    [[nodiscard]] const std::vector<FirmwareFacts>& firmware() const { return firmware_; }
    [[nodiscard]] const std::vector<Selector>& devices() const { return devices_; }
    [[nodiscard]] Plan& plan() { return plan_; }

    [[nodiscard]] bool is_in_plan(std::size_t device) const {
        return std::ranges::any_of(plan_.uses, [&](const auto& use) { return use.device == device; }) ||
               std::ranges::any_of(plan_.reserved, [&](const auto& line) { return line.first == device; });
    }

    [[nodiscard]] std::vector<Plan::Line> lines() const {
        std::vector<Plan::Line> lines;
        for (const auto& [registers, name] : plan_.names)
            lines.push_back({name, fmt::format("unit {} {:x}", name, registers)});
        for (const Plan::Use& use : plan_.uses)
            for (const std::uint32_t id : use.ids)
                lines.push_back({word(use.device),
                                 fmt::format("device {} use {} {}", word(use.device), use.unit_name, id)});
        for (const auto& [device, first] : plan_.reserved)
            lines.push_back({word(device), fmt::format("reserved {} {:x},1", word(device), first)});
        if (plan_.merges) lines.push_back({"", mode(*plan_.merges)});
        for (const auto& [registers, merges] : plan_.unit_merges)
            lines.push_back({"", fmt::format("{} unit:{}", mode(merges), name_of(registers))});
        for (const auto& [device, merges] : plan_.device_merges)
            if (is_in_plan(device)) lines.push_back({"", fmt::format("{} {}", mode(merges), word(device))});
        return lines;
    }
    [[nodiscard]] static std::string text(const std::vector<Plan::Line>& lines) {
        std::string text = "smmu armsmmuv3\n";
        for (const Plan::Line& line : lines) text += line.text + "\n";
        return text;
    }
    /// Lines in any order, but for those about one thing.
    [[nodiscard]] std::vector<Plan::Line> shuffled(const std::vector<Plan::Line>& lines) {
        std::vector<Plan::Line> mixed = lines;
        std::ranges::shuffle(mixed, random_);
        std::map<std::string, std::vector<std::string>> in_order;
        for (const Plan::Line& line : lines | std::views::reverse) in_order[line.about].push_back(line.text);
        for (Plan::Line& line : mixed) {
            line.text = in_order[line.about].back();
            in_order[line.about].pop_back();
        }
        return mixed;
    }

    /// What the words and the firmware mean for a device.
    [[nodiscard]] Outcome expected(std::size_t device) const {
        Outcome outcome;
        std::vector<std::pair<std::uint64_t, std::set<std::uint32_t>>> said;
        bool is_rest_only = true;
        const Plan::Use* use = nullptr;
        for (const Plan::Use& one : plan_.uses)
            if (one.device == device) use = &one;
        if (use == nullptr || merges(device, use->unit)) said = firmware_of(device, is_rest_only);
        if (use != nullptr) {
            if (is_rest_only) said.clear();
            said.emplace_back(use->unit, std::set<std::uint32_t>{use->ids.begin(), use->ids.end()});
        }
        for (const auto& [unit, ids] : said) {
            if (!outcome.unit) outcome.unit = unit;
            if (outcome.unit == unit) outcome.ids.insert(ids.begin(), ids.end());
        }
        add_reserved(device, outcome);
        return outcome;
    }
    /// Whether a merge of the device is one that contradicts.
    [[nodiscard]] bool contradicts(std::size_t device) const {
        for (const Plan::Use& use : plan_.uses) {
            if (use.device != device || !merges(device, use.unit)) continue;
            bool is_rest_only = true;
            const auto said = firmware_of(device, is_rest_only);
            return !is_rest_only && said.front().first != use.unit;
        }
        return false;
    }
    [[nodiscard]] std::string word(std::size_t device) const {
        if (const auto* mmio = std::get_if<MmioDevice>(&devices_[device]))
            return fmt::format("mem:{:x}", mmio->registers);
        const PciRange function = std::get<PciRange>(devices_[device]);
        return fmt::format("pci:{}:{}:{}.{}", function.segment, function.first_rid >> 8,
                           function.first_rid >> 3 & 31, function.first_rid & 7);
    }

private:
    using Said = std::vector<std::pair<std::uint64_t, std::set<std::uint32_t>>>;

    std::size_t below(std::size_t limit) {
        return std::uniform_int_distribution<std::size_t>{0, limit - 1}(random_);
    }
    static std::string mode(bool merges) { return merges ? "merge" : "override"; }
    [[nodiscard]] std::string name_of(std::uint64_t registers) const {
        const auto found = plan_.names.find(registers);
        return found == plan_.names.end() ? unit_name(UnitKind::smmu_v3, registers) : found->second;
    }
    [[nodiscard]] bool merges(std::size_t device, std::uint64_t unit) const {
        if (const auto found = plan_.device_merges.find(device); found != plan_.device_merges.end())
            return found->second;
        if (const auto found = plan_.unit_merges.find(unit); found != plan_.unit_merges.end())
            return found->second;
        return plan_.merges.value_or(false);
    }

    Selector random_selector() {
        const auto segment = static_cast<std::uint16_t>(below(2));
        switch (below(5)) {
            case 0:
                return PciPath{.segment = segment,
                               .start_bus = static_cast<std::uint8_t>(below(2)),
                               .hops = {{static_cast<std::uint8_t>(below(3)), 0}}};
            case 1: return PciRest{.segment = segment};
            case 2: return MmioDevice{.registers = (1 + below(3)) << 16, .registers_bytes = 4096};
            default: break;
        }
        const auto first = static_cast<std::uint16_t>(below(0x20) + 0x100 * below(2));
        return PciRange{.segment = segment,
                        .first_rid = first,
                        .last_rid = static_cast<std::uint16_t>(first + below(0x20))};
    }

    FirmwareFacts make_source(Source source, std::size_t first_unit) {
        FirmwareFacts made{.source = source};
        for (std::size_t at = 0; at < 2; ++at) {
            const std::uint64_t registers = 0x1000 * (first_unit + at + 1);
            made.facts.units.push_back({.name = unit_name(UnitKind::smmu_v3, registers),
                                        .kind = UnitKind::smmu_v3,
                                        .registers = registers,
                                        .origin = {.source = source}});
        }
        for (std::size_t count = below(6); count > 0; --count) {
            CoverFact cover{.unit = made.facts.units[below(2)].name,
                            .which = random_selector(),
                            .origin = {.source = source}};
            if (below(2) == 0) cover.identity.first_id = static_cast<std::uint32_t>(below(1000));
            if (below(4) == 0 && std::holds_alternative<PciRange>(cover.which))
                cover.identity.rid_mask = 0xfff8;
            made.facts.covers.push_back(cover);
        }
        for (std::size_t count = below(3); count > 0; --count) {
            const std::uint64_t first = 0x10000 * (first_unit + 1) + count;
            made.facts.reserved.push_back(
                {.who = {}, .first = first, .last = first, .origin = {.source = source}});
            if (below(3) != 0) made.facts.reserved.back().who = {random_selector(), random_selector()};
        }
        return made;
    }

    void make_plan() {
        plan_.names[0x9000] = "mine";
        for (std::uint64_t at = 1; at <= 4; ++at)
            if (below(2) == 0) plan_.names[at * 0x1000] = fmt::format("user{}", at);
        for (std::size_t device = 0; device < devices_.size(); ++device) {
            if (below(3) != 0) continue;
            const std::uint64_t unit = below(5) == 0 ? 0x9000 : 0x1000 * (1 + below(4));
            const bool has_firmware_name = unit != 0x9000 && below(2) == 0;
            Plan::Use use{
                .device = device,
                .unit = unit,
                .unit_name = has_firmware_name ? unit_name(UnitKind::smmu_v3, unit) : name_of(unit)};
            for (std::size_t count = 1 + below(2); count > 0; --count)
                use.ids.push_back(static_cast<std::uint32_t>(2000 + count * 100 + device));
            plan_.uses.push_back(use);
        }
        for (std::size_t count = below(4); count > 0; --count)
            plan_.reserved.emplace_back(below(devices_.size()), 0x90000 + count);
        if (below(2) == 0) plan_.merges = below(2) == 0;
        for (std::uint64_t at = 1; at <= 4; ++at)
            if (below(4) == 0) plan_.unit_merges[at * 0x1000] = below(2) == 0;
        for (std::size_t device = 0; device < devices_.size(); ++device)
            if (below(4) == 0) plan_.device_merges[device] = below(2) == 0;
    }

    [[nodiscard]] Said firmware_of(std::size_t device, bool& is_rest_only) const {
        Said all;
        Said rests;
        for (const FirmwareFacts& source : firmware_) {
            for (const CoverFact& cover : source.facts.covers) {
                if (!selects(cover.which, cover.identity.rid_mask, devices_[device])) continue;
                Said& to = std::holds_alternative<PciRest>(cover.which) ? rests : all;
                const auto unit = std::ranges::find(source.facts.units, cover.unit, &UnitFact::name);
                to.emplace_back(*unit->registers, std::set<std::uint32_t>{});
                add_id(cover, devices_[device], to.back().second);
            }
        }
        is_rest_only = all.empty();
        return is_rest_only ? rests : all;
    }
    void add_reserved(std::size_t device, Outcome& outcome) const {
        for (const auto& [who, first] : plan_.reserved)
            if (who == device) outcome.reserved.insert(first);
        const auto found = plan_.device_merges.find(device);
        const bool is_merged =
            found == plan_.device_merges.end() ? plan_.merges.value_or(false) : found->second;
        if (!outcome.reserved.empty() && !is_merged) return;
        for (const FirmwareFacts& source : firmware_)
            for (const ReservedFact& fact : source.facts.reserved)
                if (fact.who.empty() || std::ranges::any_of(fact.who, [&](const Selector& who) {
                        return selects(who, 0xffff, devices_[device]);
                    }))
                    outcome.reserved.insert(fact.first);
    }

    std::mt19937 random_;
    std::vector<Selector> devices_;
    std::vector<FirmwareFacts> firmware_;
    Plan plan_;
};

}  // namespace guestmem::dma::testing
