// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/vmm/boot/boot_file.hpp"
#include "guestmem/vmm/boot/boot_space.hpp"

/// ELF images for x86: what is in them, and how they get into guest memory.
///
/// Concepts: segments (PT_LOAD) go to their physical addresses. A note of the owner "Xen" with type 18
/// (XEN_ELFNOTE_PHYS32_ENTRY) in a PT_NOTE is the PVH entry: the guest starts there in 32-bit protected mode. Without
/// it the guest starts at e_entry: 64-bit mode for ELF64, 32-bit protected mode for ELF32 (entry_state.hpp, flat.hpp).
/// Contract: read_elf() trusts nothing: each header is read once; offsets, sizes and counts are checked against the
/// file and against 2^64. load_elf() claims every segment, so that one outside of RAM, or over another one or over the
/// boot tables, is refused with its number. e_entry is a physical address when a segment that may be executed is
/// there, as in Linux' vmlinux; else it is virtual, and its segment says where that is.
/// A linker may put the file's headers and notes into segments of their own, where a guest has no RAM (binutils on
/// i386: notes near 0x08048000) or something else (headers in the page below the code: what is below 1 MiB is taken).
/// A segment that holds nothing but ELF headers, notes and zeros is left out where it cannot be claimed.
/// Limits: max_elf_segments program headers, max_elf_note_bytes of notes for each PT_NOTE. Executables only (ET_EXEC):
/// nobody relocates here.
/// Threads: any for read_elf(); load_elf() one at a time for each BootSpace.
/// Example:
///     const ElfImage image = GM_TRY(read_elf(file));
///     const GuestAddress entry = GM_TRY(load_elf(image, file, space, memory));

namespace guestmem::vmm {

inline constexpr std::size_t max_elf_segments = 128;
inline constexpr std::size_t max_elf_note_bytes = 64 * 1024;

struct ElfSegment {
    unsigned number = 0;  ///< of its program header
    std::uint64_t physical_address = 0;
    std::uint64_t virtual_address = 0;
    std::uint64_t file_offset = 0;
    std::uint64_t file_bytes = 0;
    std::uint64_t memory_bytes = 0;  ///< what is beyond file_bytes is zeros
    bool is_executable = false;
    bool has_only_headers = false;
    friend bool operator==(const ElfSegment&, const ElfSegment&) = default;
};

struct ElfImage {
    bool is_64_bit = false;
    std::uint64_t entry = 0;  ///< e_entry
    std::optional<std::uint32_t> pvh_entry;
    std::vector<ElfSegment> segments;  ///< those that are loaded and not empty
};

[[nodiscard]] Result<ElfImage> read_elf(const BootFile& file);

/// Copies the segments; gives the physical address where the guest starts.
[[nodiscard]] Result<GuestAddress> load_elf(const ElfImage& image, const BootFile& file, BootSpace& space,
                                            BootMemory& memory);

}  // namespace guestmem::vmm
