// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/unit_table.hpp"

#include <fmt/format.h>

#include <charconv>

#include "guestmem/dma/unit_abilities.hpp"

namespace guestmem::dma {
namespace {

constexpr std::uint32_t function_key(PciAddress function) {
    return std::uint32_t{function.segment} << 16 | function.rid;
}

/// "smmu3.0x0000000009050000" has its registers behind the dot.
std::optional<std::uint64_t> registers_in(std::string_view name) {
    const std::size_t at = name.find(".0x");
    if (!name.starts_with("smmu") || at == std::string_view::npos) {
        return std::nullopt;
    }
    const std::string_view digits = name.substr(at + 3);
    std::uint64_t registers = 0;
    const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), registers, 16);
    if (error != std::errc{} || stop != digits.data() + digits.size()) {
        return std::nullopt;
    }
    return registers;
}

bool may_be_same(UnitKind one, UnitKind other) {
    return one == other || one == UnitKind::other || other == UnitKind::other;
}

/// The user's words have a name for the unit and may be the first to have it; what others know is filled in.
template <typename Value>
void fill(std::optional<Value>& value, const std::optional<Value>& from) {
    if (!value) {
        value = from;
    }
}

constexpr std::size_t most_origins = 8;

}  // namespace

UnitKind kind_of_kernel_unit(std::string_view name) {
    if (name.starts_with("dmar")) {
        return UnitKind::vt_d;
    }
    if (name.starts_with("ivhd")) {
        return UnitKind::amd_vi;
    }
    if (name.starts_with("smmu3.")) {
        return UnitKind::smmu_v3;
    }
    if (name.starts_with("smmu.")) {
        return UnitKind::smmu_v2;
    }
    if (name.starts_with("virtio") || parse_pci_address(name)) {
        return UnitKind::virtio_iommu;
    }
    return UnitKind::other;
}

UnitTable::UnitTable(const SourceFacts& facts, const HostView& view, ComplaintList& complaints)
    : platform_(facts.platform), platform_of_amd_(facts.platform) {
    platform_.has_interrupt_remapping = remaps_interrupts(UnitKind::other, facts);
    platform_of_amd_.has_interrupt_remapping = remaps_interrupts(UnitKind::amd_vi, facts);
    for (const UnitFact& fact : facts.units) {
        add_fact(fact);
    }
    for (const KernelUnit& kernel : view.units) {
        add_kernel(kernel, view, complaints);
    }
    for (Unit& unit : units_) {
        if (unit.kernel_name.empty()) {
            unit.abilities = abilities_of(unit.kind, nullptr, platform_of(unit.kind), view.settings);
        }
    }
}

void UnitTable::add_fact(const UnitFact& fact) {
    std::optional<std::size_t> at = find(fact.name);
    if (!at) {
        at = find_same(fact.kind, fact.registers, fact.function);
    }
    if (!at) {
        at = units_.size();
        units_.push_back({.name = fact.name, .kind = fact.kind, .segment = fact.segment});
    }
    Unit& unit = units_[*at];
    if (unit.kind == UnitKind::other) {
        unit.kind = fact.kind;
    }
    fill(unit.registers, fact.registers);
    fill(unit.function, fact.function);
    if (unit.origins.size() < most_origins) {
        unit.origins.push_back(fact.origin);
    }
    by_name_.try_emplace(fact.name, *at);
    index(*at);
}

void UnitTable::add_kernel(const KernelUnit& kernel, const HostView& view, ComplaintList& complaints) {
    const UnitKind kind = kind_of_kernel_unit(kernel.name);
    const auto registers = kernel.registers ? kernel.registers : registers_in(kernel.name);
    const auto function = kernel.function ? kernel.function : parse_pci_address(kernel.name);
    std::optional<std::size_t> at = find_same(kind, registers, function);
    if (!at) {
        at = units_.size();
        Unit unit{.kind = kind, .registers = registers, .function = function};
        unit.name = registers  ? unit_name(kind, *registers)
                    : function ? unit_name(kind, *function)
                               : kernel.name;
        unit.segment = function ? function->segment : std::uint16_t{0};
        units_.push_back(std::move(unit));
        by_name_.try_emplace(units_[*at].name, *at);
    }
    by_kernel_name_.try_emplace(kernel.name, *at);
    Unit& unit = units_[*at];
    if (!unit.kernel_name.empty()) {
        complaints.add({Source::kernel, "/sys/class/iommu/" + kernel.name},
                       fmt::format("the kernel shows unit {} as {} and as {}", unit.name, unit.kernel_name,
                                   kernel.name));
        return;
    }
    unit.kernel_name = kernel.name;
    fill(unit.registers, registers);
    fill(unit.function, function);
    if (unit.kind == UnitKind::other) {
        unit.kind = kind;
    }
    if (unit.origins.size() < most_origins) {
        unit.origins.push_back({Source::kernel, "/sys/class/iommu/" + kernel.name});
    }
    unit.abilities = abilities_of(unit.kind, &kernel, platform_of(unit.kind), view.settings);
    index(*at);
}

std::optional<std::size_t> UnitTable::find_same(UnitKind kind, std::optional<std::uint64_t> registers,
                                                std::optional<PciAddress> function) const {
    if (registers) {
        const auto [first, last] = by_registers_.equal_range(*registers);
        for (auto at = first; at != last; ++at) {
            if (may_be_same(units_[at->second].kind, kind)) {
                return at->second;
            }
        }
    }
    if (function) {
        const auto unit = find_function(*function);
        if (unit && may_be_same(units_[*unit].kind, kind)) {
            return unit;
        }
    }
    return std::nullopt;
}

void UnitTable::index(std::size_t unit) {
    const Unit& known = units_[unit];
    if (known.registers && !find_same(known.kind, known.registers, std::nullopt)) {
        by_registers_.emplace(*known.registers, unit);
    }
    if (known.function) {
        by_function_.try_emplace(function_key(*known.function), unit);
    }
}

std::optional<std::size_t> UnitTable::find(const std::string& name) const {
    const auto at = by_name_.find(name);
    return at != by_name_.end() ? std::optional(at->second) : std::nullopt;
}

std::optional<std::size_t> UnitTable::find_kernel(const std::string& name) const {
    const auto at = by_kernel_name_.find(name);
    return at != by_kernel_name_.end() ? std::optional(at->second) : std::nullopt;
}

std::optional<std::size_t> UnitTable::find_function(PciAddress function) const {
    const auto at = by_function_.find(function_key(function));
    return at != by_function_.end() ? std::optional(at->second) : std::nullopt;
}

}  // namespace guestmem::dma
