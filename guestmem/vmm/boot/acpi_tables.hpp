// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/vmm/boot/acpi_plan.hpp"
#include "guestmem/vmm/boot/boot_file.hpp"

/// ACPI tables that tell a stock guest what its machine has: RSDP, RSDT, XSDT, FADT, FACS, MADT, MCFG, DSDT.
///
/// Concepts: make_acpi_tables() turns a plan into bytes with their addresses; write_acpi_tables() puts them into guest
/// memory. Layouts are those of ACPI 6.5, chapter 5, in revisions that operating systems of the last twenty years read;
/// fixed hardware, not hardware-reduced, always in ACPI mode (no SMI command port).
/// RSDP and FACS are in the first page, since a guest may reuse the memory of the others (legacy_reservations()).
/// The MADT has a local APIC for each processor (x2APIC for ids from 255 on), one I/O APIC at any address, and
/// overrides for the ISA interrupts 0, 1 and 8 where the plan gives them other pins, and for the SCI: level, active
/// high.
/// Contract: what cannot be said in tables is an error that names the field: addresses above 4 GiB where a table has 32
/// bits, GSIs out of range, too many of something, no room. The same plan gives the same bytes.
/// Limits: max_acpi_processors, max_acpi_serial_ports, 255 PCI interrupts (slots 1 to 31 need 124).
/// Threads: any; write_acpi_tables() one at a time for each guest memory.
/// Example:
///     const AcpiTables tables = GM_TRY(make_acpi_tables(plan));
///     GM_TRY(write_acpi_tables(tables, memory));
///     boot_plan.rsdp = tables.rsdp;

namespace guestmem::vmm {

struct AcpiTable {
    std::string signature;  ///< "APIC"; "RSD PTR " for the RSDP
    GuestAddress address;
    std::vector<std::byte> bytes;
};

struct AcpiTables {
    GuestAddress rsdp;
    std::vector<AcpiTable> tables;  ///< in ascending order of their addresses

    [[nodiscard]] const AcpiTable* find(std::string_view signature) const;
};

[[nodiscard]] Result<void> check_acpi_plan(const AcpiPlan& plan);

[[nodiscard]] Result<AcpiTables> make_acpi_tables(const AcpiPlan& plan);

[[nodiscard]] Result<void> write_acpi_tables(const AcpiTables& tables, BootMemory& memory);

}  // namespace guestmem::vmm
