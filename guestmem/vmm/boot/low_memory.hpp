// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

/// What lies where below 1 MiB when a guest takes its first instruction: one table for all kinds of images.
///
/// Concepts: a spot is a run of whole pages with one purpose. Spots above 640 KiB are memory, too, but no guest is told
/// that they are RAM: a machine maps them, and the memory map reserves them.
/// Contract: the spots do not overlap, and the static checks below say so. The first page stays as it is (zeros in a
/// machine without firmware: an interrupt table and a BIOS data area that say "nothing here"). Nothing is written into
/// the page at sipi_entry: a payload copies its start-up code for other processors there (vector 0x08); Linux finds
/// itself a place.
/// Threads: any; constants.
/// Example: `GuestAddress{low_memory::zero_page.base}`

namespace guestmem::vmm::low_memory {

struct Spot {
    std::string_view name;
    std::uint64_t base = 0;
    std::uint64_t size_bytes = 0;
};

inline constexpr std::uint64_t page_bytes = 4096;

inline constexpr Spot descriptor_table{"descriptor table", 0x1000, page_bytes};
/// hvm_start_info, its list of modules and its memory map; see pvh.hpp.
inline constexpr Spot start_info{"start information", 0x2000, page_bytes};
/// Linux' boot_params; see bzimage.hpp.
inline constexpr Spot zero_page{"zero page", 0x7000, page_bytes};
inline constexpr Spot sipi_entry{"entry of other processors", 0x8000, page_bytes};
/// One page of level 4, one of level 3, four of level 2 with pages of 2 MiB.
inline constexpr Spot page_tables{"page tables", 0x9000, 6 * page_bytes};
/// For payloads that are entered in 64-bit or 32-bit mode without a protocol: the stack grows down from its end.
inline constexpr Spot stack{"first stack", 0xf000, 17 * page_bytes};
inline constexpr Spot command_line{"command line", 0x20000, 16 * page_bytes};
/// RSDP first: a guest that scans 0xe0000 to 0xfffff finds it without being told.
inline constexpr Spot acpi{"ACPI tables", 0xe0000, 32 * page_bytes};

inline constexpr std::array<Spot, 8> spots{descriptor_table, start_info, zero_page,    sipi_entry,
                                           page_tables,      stack,      command_line, acpi};

/// What a PC calls conventional memory ends here; up to 1 MiB a guest expects video memory and firmware.
inline constexpr std::uint64_t conventional_bytes = 0xa0000;
inline constexpr std::uint64_t first_megabyte = 0x100000;

[[nodiscard]] consteval bool is_well_laid_out() {
    for (std::size_t i = 0; i < spots.size(); ++i) {
        if (spots[i].base % page_bytes != 0 || spots[i].size_bytes % page_bytes != 0) return false;
        if (spots[i].base == 0 || spots[i].size_bytes == 0) return false;
        if (spots[i].base + spots[i].size_bytes > first_megabyte) return false;
        // In ascending order, so neighbors are all that can overlap.
        if (i != 0 && spots[i - 1].base + spots[i - 1].size_bytes > spots[i].base) return false;
    }
    return true;
}
static_assert(is_well_laid_out());
static_assert(command_line.base + command_line.size_bytes <= conventional_bytes);
static_assert(acpi.base >= conventional_bytes);
// A start-up interrupt's vector is a page number below 1 MiB.
static_assert(sipi_entry.base / page_bytes <= 0xff);

}  // namespace guestmem::vmm::low_memory
