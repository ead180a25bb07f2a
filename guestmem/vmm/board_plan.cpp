// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/board_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "guestmem/mem/backends/backend.hpp"
#include "guestmem/mem/backends/option_text.hpp"
#include "guestmem/mem/backends/size_text.hpp"
#include "guestmem/sys/file_system.hpp"
#include "guestmem/vmm/config/explain.hpp"
#include "guestmem/vmm/config/schema.hpp"

namespace guestmem::vmm {
namespace {

constexpr std::uint64_t share_alignment = 2UL << 20;
constexpr std::uint64_t share_window_bytes = 16UL << 30;
constexpr std::uint64_t pci64_window_bytes = 16UL << 30;
/// Below what chipsets keep for themselves, above what a `loc` usually names.
constexpr pci::AddressWindow pci32_window{.first = 0xe000'0000, .last = 0xefff'ffff};
constexpr pci::AddressWindow pci_ports{.first = 0x1000, .last = 0xffff};

std::uint64_t sum_of(const std::vector<GuestRange>& ranges) {
    std::uint64_t sum = 0;
    for (const GuestRange& range : ranges) sum += range.size_bytes();
    return sum;
}

/// What a memory line says of its backend, or what every machine has.
Result<BackendOptions> options_of(const MemoryLine& line, const std::string& name) {
    const std::uint64_t size_bytes = sum_of(line.ranges);
    if (!line.backend) {
        return BackendOptions{
            .kind = BackendKind::memfd, .id = name, .size_bytes = size_bytes, .is_shared = true};
    }
    std::string text = line.backend->value;
    if (text.find(",id=") == std::string::npos) text += ",id=" + name;
    if (text.find(",size=") == std::string::npos) text += fmt::format(",size={}", size_bytes);
    BackendOptions options = GM_TRY(parse_backend(text));
    if (options.size_bytes == size_bytes) return options;
    return Error{Errc::invalid_argument,
                 fmt::format("the backend has {} and the line asks for {}: leave the backend's size out",
                             format_qemu_size(options.size_bytes), format_qemu_size(size_bytes))};
}

/// One sentence of several lines.
std::string joined(std::string text) {
    while (!text.empty() && text.back() == '\n') text.pop_back();
    std::ranges::replace(text, '\n', ';');
    return text;
}

Result<BackendPlan> plan_memory(const MemoryLine& line, const std::string& name, const MachineFacts& facts) {
    const BackendOptions options = GM_TRY(options_of(line, name));
    BackendPlan plan = plan_backend(options, facts, GM_TRY(ask_file(options)));
    if (plan.problems.has_refusal()) return refusal_of(plan);
    return plan;
}

void plan_all_memory(BoardPlan& plan, const MachineFacts& facts, Findings& findings) {
    std::vector<BackendPlan> all;
    for (const MemoryLine& line : plan.config().memory) {
        if (line.kind == MemoryKind::reserve) continue;
        const bool is_rom = line.kind == MemoryKind::rom;
        const std::string name = fmt::format("{}{}", is_rom ? "rom" : "ram", plan.memory.size());
        auto backend = plan_memory(line, name, facts);
        if (!backend) {
            findings.add(line.backend ? line.backend->place : line.place, joined(backend.error().message()));
            continue;
        }
        all.push_back(*backend);
        plan.memory.push_back(
            {.name = name, .is_rom = is_rom, .ranges = line.ranges, .backend = *std::move(backend)});
    }
    const Problems together = check_together(all, facts);
    for (const Problem& problem : together.all()) {
        if (problem.severity == Severity::refusal && !plan.config().memory.empty()) {
            findings.add(plan.config().memory.front().place, problem.message, problem.advice);
        }
    }
}

void check_files(const VmConfig& config, Findings& findings) {
    for (const Load& load : config.loads) {
        const auto facts = path_facts(load.file.value);
        if (!facts) {
            findings.add(load.file.place, facts.error().message());
        } else if (!facts->exists) {
            findings.add(load.file.place, fmt::format("there is no file '{}'", load.file.value));
        } else if (facts->kind != FileKind::regular) {
            findings.add(load.file.place, fmt::format("'{}' is no file", load.file.value));
        }
    }
}

std::uint64_t end_of_ram(const VmConfig& config) {
    std::uint64_t end = device_hole_after;
    for (const MemoryLine& line : config.memory) {
        for (const GuestRange& range : line.ranges) end = std::max(end, range.last().value() + 1);
    }
    return (end + share_alignment - 1) / share_alignment * share_alignment;
}

bool is_pci(const Vdev& vdev) {
    return vdev.kind == VdevKind::pci || vdev.kind == VdevKind::ivshmem ||
           (vdev.kind == VdevKind::shmem && !vdev.loc);
}

std::string line_of(const Vdev& vdev) {
    std::string text = fmt::format("  {:<12}", row_of(vdev.kind).text);
    if (vdev.loc) {
        text += fmt::format(" at {:#x}", vdev.loc->value);
    } else if (is_pci(vdev)) {
        text += " on the PCI bus";
    }
    if (vdev.intr && vdev.intr->value.pin) {
        text += fmt::format(", interrupt {}:{}", vdev.intr->value.controller, *vdev.intr->value.pin);
    }
    for (const CreateLine& create : vdev.shmem.creates) {
        text +=
            fmt::format(", creates {} ({})", create.name.value, format_qemu_size(create.size_bytes.value));
    }
    for (const NameRule& rule : vdev.shmem.rules) {
        text += fmt::format(", {} {}", rule.is_allowed ? "allow" : "deny", rule.pattern.value);
    }
    if (vdev.kind == VdevKind::ivshmem) text += fmt::format(", share {}", vdev.ivshmem.share.value);
    return text + "\n";
}

}  // namespace

Result<BoardPlan> plan_board(ConfigRead read) {
    const std::uint64_t end = end_of_ram(read.config);
    const auto share_window = GuestRange::create(GuestAddress{end}, share_window_bytes);
    if (!share_window) return Error{Errc::out_of_range, "RAM ends at the end of all addresses"};
    BoardPlan plan{.read = std::move(read),
                   .memory = {},
                   .ioapic_base = std::nullopt,
                   .ecam_base = std::nullopt,
                   .share_window = *share_window};
    Findings findings{plan.read.sources};
    const MachineFacts facts = GM_TRY(ask_machine());
    plan_all_memory(plan, facts, findings);
    check_files(plan.config(), findings);
    if (!findings.is_empty()) return findings.to_error();
    for (const Vdev& vdev : plan.config().vdevs) {
        if (vdev.kind == VdevKind::ioapic)
            plan.ioapic_base = vdev.loc ? vdev.loc->value : default_ioapic_base;
        plan.has_pci = plan.has_pci || is_pci(vdev);
        if (vdev.kind == VdevKind::pci && vdev.loc) plan.ecam_base = vdev.loc->value;
    }
    const std::uint64_t pci64 = end + share_window_bytes;
    plan.pci_windows = {
        .memory32 = pci32_window,
        .memory64 = pci::AddressWindow{.first = pci64, .last = pci64 + pci64_window_bytes - 1},
        .ports = pci_ports};
    return plan;
}

std::string explain_board(const BoardPlan& plan) {
    std::string text = fmt::format("machine {}: {} processor{}\n", plan.config().system.value,
                                   plan.config().cpus.size(), plan.config().cpus.size() == 1 ? "" : "s");
    text += "memory:\n";
    for (const PlannedMemory& memory : plan.memory) {
        for (const GuestRange& range : memory.ranges) {
            text += fmt::format("  {:#014x} to {:#014x}  {:<6} {}\n", range.base().value(),
                                range.last().value(), memory.name, opening_of(memory.backend));
        }
    }
    for (const MemoryLine& line : plan.config().memory) {
        if (line.kind != MemoryKind::reserve) continue;
        for (const GuestRange& range : line.ranges) {
            text += fmt::format("  {:#014x} to {:#014x}  kept free\n", range.base().value(),
                                range.last().value());
        }
    }
    text += fmt::format("  {:#014x} to {:#014x}  regions of vdev shmem\n", plan.share_window.base().value(),
                        plan.share_window.last().value());
    text += "devices:\n";
    for (const Vdev& vdev : plan.config().vdevs) text += line_of(vdev);
    text += "as a configuration:\n";
    return text + explain_text(plan.config());
}

}  // namespace guestmem::vmm
