// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/object.hpp"
#include "guestmem/mem/range.hpp"

/// The memory map that a guest is told: which addresses are RAM and which it has to leave alone (E820, PVH).
///
/// Concepts: a plan has RAM and reserved pieces; the table is what remains of RAM beside the pieces, and the pieces.
/// Contract: entries ascend, never overlap, and neighbors of one kind are one. Where a reserved piece lies over RAM it
/// wins; two reserved pieces of different kinds that overlap, and RAM that overlaps RAM, are errors that name both.
/// legacy_reservations() are the pieces that every machine with the layout of low_memory.hpp has.
/// Limits: max_memory_map_entries, what a zero page holds.
/// Threads: any; plain values.
/// Example:
///     const auto map = GM_TRY(make_memory_map({.ram = ram, .reserved = legacy_reservations()}));

namespace guestmem::vmm {

/// The numbers are those of ACPI 6.5, 15.1 (E820), which PVH shares.
enum class MapEntryKind : std::uint32_t {
    ram = 1,
    reserved = 2,
    acpi_tables = 3,  ///< a guest may use it once it has read the tables
    acpi_nvs = 4,
};

struct ReservedPiece {
    GuestRange range;
    MapEntryKind kind = MapEntryKind::reserved;
};

struct MemoryMapPlan {
    std::vector<GuestRange> ram;
    std::vector<ReservedPiece> reserved;
};

struct MemoryMapEntry {
    GuestRange range;
    MapEntryKind kind = MapEntryKind::ram;
    friend bool operator==(const MemoryMapEntry&, const MemoryMapEntry&) = default;
};

inline constexpr std::size_t max_memory_map_entries = 128;

[[nodiscard]] Result<std::vector<MemoryMapEntry>> make_memory_map(const MemoryMapPlan& plan);

/// 640 KiB to 1 MiB: reserved, but for the ACPI tables' spot, which is of kind acpi_tables from its second page on
/// (acpi_tables.hpp). Tables at another place are the caller's to reserve.
[[nodiscard]] std::vector<ReservedPiece> legacy_reservations();

/// As it stands in boot_params.
struct E820Entry {
    Le64 base;
    Le64 size_bytes;
    Le32 kind;
};
static_assert(sizeof(E820Entry) == 20 && GuestObject<E820Entry>);

/// hvm_memmap_table_entry.
struct PvhMemoryEntry {
    Le64 base;
    Le64 size_bytes;
    Le32 kind;
    Le32 reserved;
};
static_assert(sizeof(PvhMemoryEntry) == 24 && GuestObject<PvhMemoryEntry>);

[[nodiscard]] std::vector<E820Entry> to_e820(std::span<const MemoryMapEntry> map);
[[nodiscard]] std::vector<PvhMemoryEntry> to_pvh(std::span<const MemoryMapEntry> map);

}  // namespace guestmem::vmm
