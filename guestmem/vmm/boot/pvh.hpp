// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/object.hpp"
#include "guestmem/vmm/boot/boot_file.hpp"
#include "guestmem/vmm/boot/entry_state.hpp"
#include "guestmem/vmm/boot/memory_map_table.hpp"

/// hvm_start_info: what a PVH guest finds at the address in ebx. Payloads without a protocol get the same (flat.hpp).
///
/// Concepts: the layouts are those of xen/include/public/arch-x86/hvm/start_info.h, version 1: command line, modules
/// (the first is the initrd), RSDP, memory map. All lie in one page, low_memory::start_info.
/// Contract: addresses of what is not there are 0, as are counts.
/// Limits: one module; max_memory_map_entries.
/// Threads: one at a time for each guest memory.
/// Example:
///     GM_TRY(write_start_info({.map = map, .initrd = initrd, .rsdp = rsdp}, memory));
///     const EntryState state = make_pvh_entry(entry);

namespace guestmem::vmm {

inline constexpr std::uint32_t start_info_magic = 0x336ec578;

struct StartInfo {
    Le32 magic;
    Le32 version;
    Le32 flags;
    Le32 count_modules;
    Le64 modules_address;
    Le64 command_line_address;
    Le64 rsdp_address;
    Le64 memory_map_address;
    Le32 count_memory_map_entries;
    Le32 reserved;
};
static_assert(sizeof(StartInfo) == 56 && GuestObject<StartInfo>);

/// hvm_modlist_entry.
struct StartModule {
    Le64 address;
    Le64 size_bytes;
    Le64 command_line_address;
    Le64 reserved;
};
static_assert(sizeof(StartModule) == 32 && GuestObject<StartModule>);

struct StartInfoPlan {
    std::span<const MemoryMapEntry> map;
    std::optional<GuestRange> initrd = std::nullopt;
    std::optional<GuestAddress> rsdp = std::nullopt;
    bool has_command_line = true;  ///< at low_memory::command_line
};

[[nodiscard]] Result<void> write_start_info(const StartInfoPlan& plan, BootMemory& memory);

/// 32-bit protected mode with ebx = the start information.
[[nodiscard]] EntryState make_pvh_entry(GuestAddress entry);

}  // namespace guestmem::vmm
