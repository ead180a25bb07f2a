// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/memory_map_table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "guestmem/vmm/boot/boot_space.hpp"
#include "guestmem/vmm/boot/low_memory.hpp"

namespace guestmem::vmm {

namespace {

constexpr auto base_of = [](const auto& piece) { return piece.range.base(); };

/// A piece that follows or overlaps the last one of its kind becomes part of it.
void append(std::vector<MemoryMapEntry>& map, const GuestRange& range, MapEntryKind kind) {
    if (!map.empty() && map.back().kind == kind &&
        (map.back().range.overlaps(range) || map.back().range.is_followed_by(range))) {
        const GuestAddress last = std::max(map.back().range.last(), range.last());
        if (const auto joined = GuestRange::from_first_last(map.back().range.base(), last)) {
            map.back().range = *joined;
            return;
        }
    }
    map.push_back({range, kind});
}

Result<std::vector<MemoryMapEntry>> join_reserved(std::vector<ReservedPiece> pieces) {
    std::ranges::sort(pieces, {}, base_of);
    std::vector<MemoryMapEntry> joined;
    for (const ReservedPiece& piece : pieces) {
        if (piece.kind == MapEntryKind::ram)
            return Error{Errc::invalid_argument,
                         fmt::format("memory map: {} is reserved as RAM", to_text(piece.range))};
        if (!joined.empty() && joined.back().kind != piece.kind && joined.back().range.overlaps(piece.range))
            return Error{Errc::invalid_argument,
                         fmt::format("memory map: {} is reserved as kind {}, and {} as kind {}",
                                     to_text(joined.back().range), std::to_underlying(joined.back().kind),
                                     to_text(piece.range), std::to_underlying(piece.kind))};
        append(joined, piece.range, piece.kind);
    }
    return joined;
}

/// What remains of RAM beside the reserved pieces, which ascend.
void append_free_ram(std::vector<MemoryMapEntry>& map, const GuestRange& ram,
                     std::span<const MemoryMapEntry> reserved) {
    GuestAddress first = ram.base();
    for (const MemoryMapEntry& piece : reserved) {
        if (piece.range.last() < first) continue;
        if (piece.range.base() > ram.last()) break;
        if (const auto before = piece.range.base().checked_sub(1); before && *before >= first)
            append(map, *GuestRange::from_first_last(first, *before), MapEntryKind::ram);
        const auto behind = piece.range.last().checked_add(1);
        if (!behind || *behind > ram.last()) return;
        first = *behind;
    }
    if (const auto rest = GuestRange::from_first_last(first, ram.last()))
        append(map, *rest, MapEntryKind::ram);
}

}  // namespace

Result<std::vector<MemoryMapEntry>> make_memory_map(const MemoryMapPlan& plan) {
    const std::vector<MemoryMapEntry> reserved = GM_TRY(join_reserved(plan.reserved));
    std::vector<GuestRange> ram = plan.ram;
    std::ranges::sort(ram);
    std::vector<MemoryMapEntry> free;
    for (std::size_t i = 0; i < ram.size(); ++i) {
        if (i != 0 && ram[i - 1].overlaps(ram[i]))
            return Error{Errc::invalid_argument, fmt::format("memory map: RAM at {} overlaps RAM at {}",
                                                             to_text(ram[i]), to_text(ram[i - 1]))};
        append_free_ram(free, ram[i], reserved);
    }
    std::vector<MemoryMapEntry> all = free;
    all.insert(all.end(), reserved.begin(), reserved.end());
    std::ranges::sort(all, {}, base_of);
    std::vector<MemoryMapEntry> map;
    for (const MemoryMapEntry& entry : all) append(map, entry.range, entry.kind);
    if (map.size() > max_memory_map_entries)
        return Error{Errc::exhausted, fmt::format("memory map: {} entries; a guest can be told {}: use fewer "
                                                  "ranges of RAM",
                                                  map.size(), max_memory_map_entries)};
    return map;
}

std::vector<ReservedPiece> legacy_reservations() {
    using low_memory::acpi;
    const GuestRange video = *GuestRange::create(GuestAddress{low_memory::conventional_bytes},
                                                 low_memory::acpi.base - low_memory::conventional_bytes);
    static_assert(acpi.base + acpi.size_bytes == low_memory::first_megabyte);
    // RSDP and FACS are in the first page, and stay in use (acpi_tables.hpp).
    const GuestRange tables = *GuestRange::from_first_last(GuestAddress{acpi.base + low_memory::page_bytes},
                                                           GuestAddress{low_memory::first_megabyte - 1});
    const GuestRange pointers = *GuestRange::create(GuestAddress{acpi.base}, low_memory::page_bytes);
    return {{video, MapEntryKind::reserved},
            {pointers, MapEntryKind::reserved},
            {tables, MapEntryKind::acpi_tables}};
}

std::vector<E820Entry> to_e820(std::span<const MemoryMapEntry> map) {
    std::vector<E820Entry> entries;
    entries.reserve(map.size());
    for (const MemoryMapEntry& entry : map)
        entries.push_back({Le64{entry.range.base().value()}, Le64{entry.range.size_bytes()},
                           Le32{std::to_underlying(entry.kind)}});
    return entries;
}

std::vector<PvhMemoryEntry> to_pvh(std::span<const MemoryMapEntry> map) {
    std::vector<PvhMemoryEntry> entries;
    entries.reserve(map.size());
    for (const MemoryMapEntry& entry : map)
        entries.push_back({Le64{entry.range.base().value()}, Le64{entry.range.size_bytes()},
                           Le32{std::to_underlying(entry.kind)}, Le32{0}});
    return entries;
}

}  // namespace guestmem::vmm
