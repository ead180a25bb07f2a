// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "guestmem/base/result.hpp"
#include "guestmem/vmm/boot/boot_file.hpp"
#include "guestmem/vmm/boot/boot_space.hpp"
#include "guestmem/vmm/boot/entry_state.hpp"

/// Payloads without a boot protocol: raw bytes at an address, and ELF files without a PVH note.
///
/// Concepts: what has no headers is copied to an address and entered at its first byte.
/// Contract, what a payload can rely on:
/// - a flat file and an ELF64 start in 64-bit mode with the low 4 GiB mapped at their own addresses; an ELF32 in 32-bit
///   protected mode without paging (entry_state.hpp has all registers);
/// - rdi and rbx (edi, ebx) = the address of a StartInfo (pvh.hpp): memory map, RSDP, command line, initrd;
/// - rsp is the end of low_memory::stack, a multiple of 16, as before a call; interrupts are off, there is no
///   interrupt table.
/// Threads: any.
/// Example:
///     GM_TRY(load_flat(file, GuestAddress{0x100000}, space, memory));
///     const EntryState state = make_payload_entry(EntryMode::long_64, GuestAddress{0x100000});

namespace guestmem::vmm {

inline constexpr std::uint64_t default_flat_address = 0x100000;

[[nodiscard]] Result<void> load_flat(const BootFile& file, GuestAddress address, BootSpace& space,
                                     BootMemory& memory);

[[nodiscard]] EntryState make_payload_entry(EntryMode mode, GuestAddress entry);

}  // namespace guestmem::vmm
