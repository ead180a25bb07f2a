// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/unit_abilities.hpp"

#include <algorithm>

namespace guestmem::dma {
namespace {

constexpr std::uint64_t kib_4 = std::uint64_t{1} << 12;
constexpr std::uint64_t mib_2 = std::uint64_t{1} << 21;
constexpr std::uint64_t gib_1 = std::uint64_t{1} << 30;
/// Each power of two from 4 KiB on.
constexpr std::uint64_t all_sizes = ~(kib_4 - 1);

constexpr bool bit(std::uint64_t word, unsigned number) { return (word >> number & 1) != 0; }

constexpr std::uint64_t field(std::uint64_t word, unsigned low, unsigned count_bits) {
    return word >> low & ((std::uint64_t{1} << count_bits) - 1);
}

/// The widest of the guest address widths in SAGAW (cap 12:8): bit n is 30 + 9n bits; 0 and 4 are reserved.
std::optional<std::uint8_t> widest_table(std::uint64_t capability) {
    for (const unsigned levels : {3U, 2U, 1U}) {
        if (bit(capability, 8 + levels)) {
            return static_cast<std::uint8_t>(30 + 9 * levels);
        }
    }
    return std::nullopt;
}

/// What a table says, unless the command line says otherwise.
std::optional<bool> remapping_of(const PlatformFacts& platform, const KernelSettings& settings) {
    return is_remapping_off(settings.command_line) ? std::optional(false) : platform.has_interrupt_remapping;
}

/// One value of "intremap=", which the kernel compares by its beginning.
void hear_remapping(std::string_view value, bool& is_off, bool& is_unchecked) {
    if (value.starts_with("on")) {
        is_off = false;
    } else if (value.starts_with("off")) {
        is_off = true;
    } else if (value.starts_with("nosid")) {
        is_unchecked = true;
    }
}

/// Bits of cap and ecap: Intel Virtualization Technology for Directed I/O, chapter 11.4.
void read_vt_d(UnitAbilities& abilities, const KernelUnit& kernel, const PlatformFacts& platform,
               const KernelSettings& settings) {
    if (kernel.capability) {
        const std::uint64_t capability = *kernel.capability;
        abilities.page_sizes = kib_4 | (bit(capability, 34) ? mib_2 : 0) | (bit(capability, 35) ? gib_1 : 0);
        if (const auto table = widest_table(capability)) {
            abilities.input_bits = std::min(*table, static_cast<std::uint8_t>(field(capability, 16, 6) + 1));
        }
    }
    if (kernel.extended) {
        const std::uint64_t extended = *kernel.extended;
        abilities.is_coherent = bit(extended, 0);
        abilities.has_device_tlb = bit(extended, 2);
        abilities.has_interrupt_remapping = bit(extended, 3) ? remapping_of(platform, settings) : false;
    }
}

/// Bits of the PCI capability and of extended features: AMD I/O Virtualization Technology, 3.2.1 and 3.4.9.
void read_amd_vi(UnitAbilities& abilities, const KernelUnit& kernel, const PlatformFacts& platform,
                 const KernelSettings& settings) {
    // Linux leaves out 512 GiB, which old hardware gets wrong.
    abilities.page_sizes = all_sizes & ~(std::uint64_t{1} << 39);
    abilities.has_interrupt_remapping = remapping_of(platform, settings);
    if (kernel.capability) {
        abilities.has_device_tlb = bit(*kernel.capability, 24);
    }
    if (kernel.extended) {
        constexpr std::uint8_t widths[] = {48, 57, 64};
        const std::uint64_t levels = field(*kernel.extended, 10, 2);
        if (levels < std::size(widths)) {
            abilities.input_bits = widths[levels];
        }
    }
}

/// The sizes that a stage 1 table has for each size of its smallest page; Linux takes that of its own pages.
std::uint64_t smmu_sizes(std::uint64_t page_bytes) {
    constexpr std::uint64_t kib_16 = std::uint64_t{1} << 14;
    constexpr std::uint64_t kib_64 = std::uint64_t{1} << 16;
    switch (page_bytes) {
        case kib_16: return kib_16 | std::uint64_t{1} << 25;
        case kib_64: return kib_64 | std::uint64_t{1} << 29;
        default: return kib_4 | mib_2 | gib_1;
    }
}

}  // namespace

bool is_remapping_off(std::string_view command_line) {
    constexpr std::string_view parameter = "intremap=";
    bool is_off = false;
    bool is_unchecked = false;
    while (!command_line.empty()) {
        const std::size_t stop = std::min(command_line.find_first_of(" \t\n"), command_line.size());
        std::string word(command_line.substr(0, stop));
        command_line.remove_prefix(std::min(stop + 1, command_line.size()));
        std::erase(word, '"');
        if (word == "--") {
            break;
        }
        if (word == "nointremap") {
            is_off = true;
        }
        if (!word.starts_with(parameter)) {
            continue;
        }
        std::string_view values = std::string_view(word).substr(parameter.size());
        while (!values.empty()) {
            const std::size_t comma = std::min(values.find(','), values.size());
            hear_remapping(values.substr(0, comma), is_off, is_unchecked);
            values.remove_prefix(std::min(comma + 1, values.size()));
        }
    }
    return is_off || is_unchecked;
}

std::optional<bool> remaps_interrupts(UnitKind kind, const SourceFacts& facts) {
    if (kind != UnitKind::amd_vi) {
        return facts.platform.has_interrupt_remapping;
    }
    const auto is_ivrs = [](const auto& fact) { return fact.origin.source == Source::ivrs; };
    const auto is_sender = [&](const CoverFact& cover) {
        const auto* sender = std::get_if<InterruptSender>(&cover.which);
        return is_ivrs(cover) && sender != nullptr && sender->kind == InterruptSender::Kind::io_apic;
    };
    if (std::ranges::any_of(facts.covers, is_sender)) {
        return true;
    }
    return std::ranges::any_of(facts.units, is_ivrs) ? std::optional(false) : std::nullopt;
}

UnitAbilities abilities_of(UnitKind kind, const KernelUnit* kernel, const PlatformFacts& platform,
                           const KernelSettings& settings) {
    UnitAbilities abilities;
    abilities.output_bits = platform.address_bits;
    switch (kind) {
        case UnitKind::vt_d:
            abilities.can_forbid_reads = false;
            if (platform.has_interrupt_remapping == false) {
                abilities.has_interrupt_remapping = false;
            }
            if (kernel != nullptr) {
                read_vt_d(abilities, *kernel, platform, settings);
            }
            break;
        case UnitKind::amd_vi:
            abilities.can_forbid_reads = true;
            if (kernel != nullptr) {
                read_amd_vi(abilities, *kernel, platform, settings);
            }
            break;
        case UnitKind::smmu_v2:
        case UnitKind::smmu_v3:
            abilities.page_sizes = smmu_sizes(settings.page_bytes);
            abilities.can_forbid_reads = false;
            abilities.has_interrupt_remapping = platform.has_interrupt_remapping;
            break;
        case UnitKind::virtio_iommu:
            abilities.page_sizes = all_sizes;
            abilities.can_forbid_reads = true;
            // On x86 nothing remaps its guests' interrupts; elsewhere the interrupt controller may.
            abilities.has_interrupt_remapping =
                settings.architecture == "x86_64" ? false : platform.has_interrupt_remapping;
            break;
        case UnitKind::other: break;
    }
    return abilities;
}

}  // namespace guestmem::dma
