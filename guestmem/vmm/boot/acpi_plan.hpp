// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "guestmem/mem/range.hpp"
#include "guestmem/vmm/boot/low_memory.hpp"

/// What a machine has, as far as ACPI tables speak of it: processors, interrupt controllers, power, PCI, ISA devices.
///
/// Concepts: numbers and addresses only; acpi_tables.hpp makes tables of them. A GSI is a pin of the I/O APIC, counted
/// from its first_gsi on. What is absent is nothing.
/// Contract: plain values; make_acpi_tables() says what cannot be.
/// Threads: any.

namespace guestmem::vmm {

struct IoApicPlan {
    std::uint8_t id = 0;
    GuestAddress address{0xfec00000};
    std::uint32_t first_gsi = 0;
};

/// Fixed hardware of ACPI 6.5, 4.8, at I/O ports. Ports that are 0 are not there.
struct PowerPlan {
    std::uint16_t event_port = 0x600;    ///< PM1a_EVT_BLK: status and enable, 2 bytes each
    std::uint16_t control_port = 0x604;  ///< PM1a_CNT_BLK: 2 bytes
    std::uint16_t timer_port = 0x608;    ///< PM_TMR_BLK: 4 bytes
    bool has_32_bit_timer = true;        ///< 24 bits otherwise
    bool has_power_button = true;
    std::uint8_t sci_gsi = 9;
    std::uint16_t reset_port = 0xcf9;
    std::uint8_t reset_value = 0x06;
    std::uint8_t sleep_type_s5 = 5;  ///< what a guest writes into SLP_TYP to turn the machine off; 0 to 7
};

struct PortWindow {
    std::uint16_t first = 0;
    std::uint16_t last = 0;
};

/// INTA to INTD are 0 to 3.
struct PciInterrupt {
    std::uint8_t slot = 0;
    std::uint8_t pin = 0;
    std::uint32_t gsi = 0;
};

struct PciPlan {
    std::uint8_t first_bus = 0;
    std::uint8_t last_bus = 0;
    std::vector<PortWindow> port_windows = {};
    std::vector<GuestRange> memory_windows_32 = {};
    std::vector<GuestRange> memory_windows_64 = {};
    /// 1 MiB for each bus from first_bus on; nothing: configuration by ports 0xcf8 and 0xcfc alone.
    std::optional<GuestAddress> ecam = std::nullopt;
    std::vector<PciInterrupt> interrupts = {};
};

/// The usual turn: slot s, pin p is the GSI number (s + p) modulo 4 of these, for slots 1 to 31.
[[nodiscard]] std::vector<PciInterrupt> make_turning_interrupts(const std::array<std::uint32_t, 4>& gsis);

struct SerialPlan {
    std::uint16_t port = 0x3f8;
    std::uint32_t gsi = 4;
};

struct AcpiPlan {
    /// A multiple of 64. All tables together have to fit into the room, below 4 GiB.
    GuestAddress tables{low_memory::acpi.base};
    std::uint64_t room_bytes = low_memory::acpi.size_bytes;

    std::vector<std::uint32_t> apic_ids = {0};  ///< one for each processor
    GuestAddress local_apic{0xfee00000};
    std::optional<IoApicPlan> io_apic = IoApicPlan{};
    bool has_pic = true;                                       ///< two 8259 at 0x20 and 0xa0
    std::optional<std::uint32_t> timer_gsi = std::nullopt;     ///< of a 8254; 2 on a PC with an I/O APIC
    std::optional<std::uint32_t> clock_gsi = std::nullopt;     ///< of a MC146818 at 0x70
    std::optional<std::uint32_t> keyboard_gsi = std::nullopt;  ///< of a 8042 at 0x60 and 0x64
    std::vector<SerialPlan> serial = {};                       ///< COM1 first
    PowerPlan power = {};
    std::optional<PciPlan> pci = std::nullopt;
    /// Tables of the user's own, each whole: they stand beside the machine's.
    std::vector<std::vector<std::byte>> extra_tables = {};
};

inline constexpr std::size_t max_acpi_processors = 1024;
inline constexpr std::size_t max_acpi_serial_ports = 4;

}  // namespace guestmem::vmm
