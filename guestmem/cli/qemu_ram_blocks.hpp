// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// The RAM blocks of a QEMU, asked over its QMP socket: what its memory is called and where it has it.
///
/// Concepts: a RAM block is a piece of QEMU's memory that a guest can see: RAM, ROM, a display's memory. QEMU 8.1 and
/// later says each block's host address in `info ramblock`; of earlier ones `info mtree -f` and `gpa2hva` give that
/// of the blocks that the guest sees somewhere. A block without one has no host_base.
/// Contract: read only: no command that is sent changes the machine. Whoever listens may say anything: what is no
/// greeting of QMP within greeting_timeout_ms is nothing (no QEMU), and what breaks the protocol behind the greeting
/// is an error. Names are the bytes that came.
/// Limits: those of qmp.hpp, max_ram_blocks, conversation_timeout_ms behind the greeting.
/// Threads: one at a time.

namespace guestmem::cli {

inline constexpr std::size_t max_ram_blocks = 512;

struct RamBlock {
    std::string name = {};     ///< "pc.ram", "0000:00:02.0/vga.vram"; empty for a backend that no device uses
    std::string backend = {};  ///< the id of the memory backend it is; empty where it is none
    std::uint64_t size_bytes = 0;
    std::optional<std::uint64_t> host_base = {};
};

/// Where a block stands in the guest: `address` shows it from `offset_bytes` on.
struct GuestPlace {
    std::uint64_t address = 0;
    std::uint64_t offset_bytes = 0;
};

/// The table of `info ramblock`.
[[nodiscard]] Result<std::vector<RamBlock>> parse_ram_blocks(std::string_view text);
/// The first place of the block in what `info mtree -f` says of the address space "memory".
[[nodiscard]] std::optional<GuestPlace> find_guest_place(std::string_view tree, std::string_view block);
/// "Host virtual address for 0x0 (pc.ram) is 0x7f00"; nothing for other words or another block.
[[nodiscard]] std::optional<std::uint64_t> parse_host_address(std::string_view text, std::string_view block);

/// Nothing when the other end does not greet as QEMU does.
[[nodiscard]] Result<std::optional<std::vector<RamBlock>>> ask_ram_blocks(const UnixStream& stream);

}  // namespace guestmem::cli
