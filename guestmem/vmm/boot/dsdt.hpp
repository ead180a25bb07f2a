// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

#include "guestmem/vmm/boot/acpi_plan.hpp"

/// The body of the DSDT: a machine's devices in AML, without the table's header.
///
/// Concepts: \_SB has the processors (C000, C001, ... in the order of the plan), PCI0 with its windows and its _PRT,
/// the ISA devices of the plan (PIC, TIMR, RTC, KBD, COM1 to COM4), and MBRD, which holds what the board itself
/// uses; \_S5
/// says how to turn the machine off. Names and identifiers are those of ACPI 6.5, 5.6.7.
/// Contract: all GSIs in _PRT are pins, level and active low, as PCI interrupts are.
/// Threads: any.
/// Known holes: no _PIC and no link devices: a guest that uses the PIC gets PCI interrupts only for GSIs below 16, and
/// has to be told the same number by the PCI interrupt line register. No _OSC: Linux leaves ASPM and hot plug alone.

namespace guestmem::vmm {

/// For a plan that check_acpi_plan() has found right.
[[nodiscard]] std::vector<std::byte> make_dsdt_body(const AcpiPlan& plan);

}  // namespace guestmem::vmm
