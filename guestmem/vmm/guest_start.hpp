// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "guestmem/base/result.hpp"
#include "guestmem/vmm/board_plan.hpp"
#include "guestmem/vmm/boot/acpi_plan.hpp"
#include "guestmem/vmm/boot/guest_loader.hpp"

/// A guest's files and tables in its memory, so that its first processor can start.
///
/// Concepts: the files of the plan's `load` lines, the command line, the memory map, and ACPI tables that describe the
/// board.
/// Contract: files are read once, straight into guest memory; what is wrong with one is an error that names the line.
/// Threads: one at a time, before the guest runs.

namespace guestmem::vmm {

/// Fixed ports that every machine has, and where the tables say they are.
namespace ports {
inline constexpr std::uint16_t power = 0x600;
inline constexpr std::uint16_t debug = 0xe9;
inline constexpr std::uint16_t exit = 0xf4;
}  // namespace ports

/// GSIs of the PCI bus' four lines, behind those of ISA.
inline constexpr std::array<std::uint32_t, 4> pci_gsis = pci_pins;
inline constexpr std::uint32_t sci_gsi = power_pin;

[[nodiscard]] AcpiPlan plan_acpi(const BoardPlan& plan);
[[nodiscard]] Result<LoadedGuest> load_files(const BoardPlan& plan, BootMemory& memory);

}  // namespace guestmem::vmm
