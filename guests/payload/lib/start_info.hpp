// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the loader tells a payload: the command line, which holds the payload's options, and the memory map.
//
// Concepts: an option is a word `key=value` of the command line; a number is decimal or hexadecimal with 0x.
//   Layout: Xen's public HVM start info, version 0 or 1; the memory map is there from version 1 on.
// Contract: nothing of it is changed; a missing piece is an empty text or no entries.
// Example: number_option("ioapic", 0xfec00000)

#include <cstddef>
#include <cstdint>

#include "guests/payload/lib/console.hpp"

namespace guestmem::payload {

struct MemoryPiece {
    std::uint64_t address;
    std::uint64_t size_bytes;
    std::uint32_t type;  // 1: RAM; others as in the E820 table
    std::uint32_t reserved;
};

inline constexpr std::uint32_t memory_is_ram = 1;

std::uint64_t start_info_address();
Text command_line();
std::size_t count_memory_pieces();
MemoryPiece memory_piece(std::size_t index);

// The value of the option; without it, `otherwise`.
Text option(Text key, Text otherwise = {});
std::uint64_t number_option(Text key, std::uint64_t otherwise);

// Takes a number off the front of the text, and the character behind it; 0 where there is none.
std::uint64_t take_number(Text& text);

// The memory that the payload itself occupies.
std::uint64_t image_address();
std::uint64_t image_size_bytes();

}  // namespace guestmem::payload
