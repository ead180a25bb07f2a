// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/vmm/boot/boot_file.hpp"
#include "guestmem/vmm/boot/boot_space.hpp"
#include "guestmem/vmm/boot/entry_state.hpp"
#include "guestmem/vmm/boot/memory_map_table.hpp"

/// Linux kernels as they are installed (bzImage), started by the x86 boot protocol without its real-mode part.
///
/// Concepts: a setup header in the first sectors says what the kernel wants; its protected-mode part, which holds the
/// decompressor and the kernel, is copied into RAM; boot_params ("zero page") tells the kernel where the rest is.
/// Offsets and names are those of Documentation/arch/x86/boot.rst and zero-page.rst.
/// Contract: read_bzimage() checks the header against the file: protocol 2.06 or later, loaded high, all parts there.
/// A kernel of protocol 2.10 and later gets init_size bytes at the address that it prefers, or above that at its
/// alignment when it is relocatable. A kernel with a 64-bit entry (2.12) starts there, another one in 32-bit protected
/// mode. rsi is the zero page. There is no setup_data and no video mode.
/// Limits: everything lies below 4 GiB; the initrd below the header's initrd_addr_max, as high as possible.
/// Threads: any for read_bzimage(); the others one at a time for each guest memory.
/// Example:
///     const BzImage image = GM_TRY(read_bzimage(file));
///     const GuestAddress kernel = GM_TRY(load_bzimage(image, file, space, memory));
///     GM_TRY(write_zero_page(image, {.kernel = kernel, .map = map}, memory));
///     const EntryState state = make_linux_entry(image, kernel);

namespace guestmem::vmm {

struct BzImage {
    std::uint16_t version = 0;      ///< 0x020f is 2.15
    std::vector<std::byte> header;  ///< from offset 0x1f1 of the file to where the header says that it ends
    std::uint64_t code_offset = 0;  ///< of the protected-mode part in the file
    std::uint64_t code_bytes = 0;
    bool has_64_bit_entry = false;
    bool is_relocatable = false;
    std::uint64_t alignment = 0;  ///< a power of two
    std::uint64_t preferred_address = 0;
    std::uint64_t room_bytes = 0;  ///< what the kernel needs there before it knows the memory map
    std::uint64_t last_initrd_address = 0;
    std::uint32_t max_command_line_bytes = 0;  ///< without the NUL
};

struct ZeroPagePlan {
    GuestAddress kernel;
    std::span<const MemoryMapEntry> map;
    std::optional<GuestRange> initrd = std::nullopt;
    std::optional<GuestAddress> rsdp = std::nullopt;
};

[[nodiscard]] Result<BzImage> read_bzimage(const BootFile& file);

/// Copies the protected-mode part; gives its address.
[[nodiscard]] Result<GuestAddress> load_bzimage(const BzImage& image, const BootFile& file, BootSpace& space,
                                                BootMemory& memory);

/// The command line is at low_memory::command_line.
[[nodiscard]] Result<void> write_zero_page(const BzImage& image, const ZeroPagePlan& plan,
                                           BootMemory& memory);

[[nodiscard]] EntryState make_linux_entry(const BzImage& image, GuestAddress kernel);

}  // namespace guestmem::vmm
