// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/dma/discover/host_tree.hpp"
#include "guestmem/dma/facts.hpp"

/// The firmware's descriptions of IOMMUs as raw bytes: ACPI tables and the flattened device tree.
///
/// Concepts: the kernel shows ACPI tables by signature, and further ones of a signature with a number behind it
/// ("DMAR1"). It shows a device tree also on machines that ACPI describes: there it has nothing but pointers to EFI's
/// memory map.
/// Contract: all tables named DMAR, IVRS, IORT and VIOT, in this order and then of their numbers. The
/// device tree is among them only when there is no IORT and it has a node besides /chosen. A table that cannot be
/// read is a complaint. No table at all is no error.
/// Threads: any.
/// Limits: max_firmware_tables of max_firmware_table_bytes each, beyond which Linux takes no device tree.
/// Example:
///     const FirmwareTables found = GM_TRY(firmware_tables(*tree));
///     for (const FirmwareTable& table : found.tables) ...

namespace guestmem::dma {

inline constexpr std::size_t max_firmware_table_bytes = std::size_t{2} << 20;
inline constexpr std::size_t max_firmware_tables = 64;

struct FirmwareTable {
    Source source = Source::dmar;
    std::string name = {};   ///< "DMAR", "DMAR1", "fdt"
    std::string bytes = {};  ///< with the table's own header
};

struct FirmwareTables {
    std::vector<FirmwareTable> tables = {};
    std::vector<Complaint> complaints = {};
};

[[nodiscard]] Result<FirmwareTables> firmware_tables(HostTree& tree);

/// Whether a flattened device tree describes a machine: it is sound and has a node besides /chosen.
[[nodiscard]] bool is_machine_description(std::string_view device_tree);

/// Sets to zeros what of a device tree names one specimen or a user: serial numbers, MAC addresses, UUIDs, seeds, the
/// command line. A blob that is not sound becomes empty: nobody knows what is in it.
void blank_private_properties(std::string& device_tree);

}  // namespace guestmem::dma
