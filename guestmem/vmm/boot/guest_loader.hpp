// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/vmm/boot/boot_file.hpp"
#include "guestmem/vmm/boot/boot_space.hpp"
#include "guestmem/vmm/boot/entry_state.hpp"
#include "guestmem/vmm/boot/flat.hpp"
#include "guestmem/vmm/boot/image_kind.hpp"
#include "guestmem/vmm/boot/memory_map_table.hpp"

/// From files to a guest that can start: image, initrd, data, command line, tables of low memory, entry state.
///
/// Concepts: the kind of the image decides about the protocol: Linux' own, PVH (an ELF file with the note), or none
/// (flat.hpp). Everything gets its place from one BootSpace, so that no two things share a byte.
/// Contract: load_guest() writes nothing outside of what it claims, and the claims come back for whoever explains
/// them. The ACPI tables are written by somebody else (acpi_tables.hpp), to low_memory::acpi or another place that
/// `taken` names. After an error guest memory may have been written in part: start from fresh memory.
/// RAM has to hold the spots of low_memory.hpp that the kind needs (0x1000 to 0x2ffff), and has zeros where nothing is
/// loaded.
/// Threads: one at a time for each guest memory.
/// Cost: one copy of each file from bytes, none of our own with a read function.
/// Example:
///     const LoadedGuest guest = GM_TRY(load_guest({.image = &kernel, .initrd = &initrd, .memory = plan}, memory));

namespace guestmem::vmm {

/// A file that goes to an address, and starts nothing.
struct BootData {
    const BootFile* file = nullptr;
    GuestAddress address;
};

struct GuestBootPlan {
    const BootFile* image = nullptr;
    const BootFile* initrd = nullptr;  ///< none for null
    std::string command_line = {};
    /// Where a flat image goes; nothing: default_flat_address. An address for an image with one of its own is an error.
    std::optional<GuestAddress> address = std::nullopt;
    std::vector<BootData> data = {};
    std::vector<Claim> taken = {};  ///< what the loader has to leave alone, RAM or not
    MemoryMapPlan memory = {};
    std::optional<GuestAddress> rsdp = std::nullopt;
};

struct LoadedGuest {
    ImageKind kind = ImageKind::flat;
    EntryState entry;
    std::vector<Claim> claims;
    std::vector<MemoryMapEntry> map;
};

[[nodiscard]] Result<LoadedGuest> load_guest(const GuestBootPlan& plan, BootMemory& memory);

}  // namespace guestmem::vmm
