// SPDX-License-Identifier: Apache-2.0
#include "guests/payload/lib/start_info.hpp"

extern "C" {
constinit std::uint32_t payload_start_info = 0;  // written by the entry
extern char payload_image[];                     // these two by the linker script
extern char payload_image_size[];
}

namespace guestmem::payload {

namespace {

struct StartInfo {
    std::uint32_t magic;
    std::uint32_t version;
    std::uint32_t flags;
    std::uint32_t modules;
    std::uint64_t module_list;
    std::uint64_t command_line;
    std::uint64_t rsdp;
    std::uint64_t memory_map;
    std::uint32_t memory_pieces;
    std::uint32_t reserved;
};
static_assert(sizeof(StartInfo) == 56 && sizeof(MemoryPiece) == 24);

constexpr std::uint32_t start_info_magic = 0x336ec578;
constexpr std::size_t max_command_line_bytes = 4096;

template <typename Thing>
const Thing* at(std::uint64_t address) {
    return reinterpret_cast<const Thing*>(address);
}

// A null pointer where there is none.
const StartInfo* start_info() {
    const auto* info = at<StartInfo>(payload_start_info);
    return payload_start_info && info->magic == start_info_magic ? info : nullptr;
}

int digit_of(char character) {
    if (character >= '0' && character <= '9') return character - '0';
    if (character >= 'a' && character <= 'f') return character - 'a' + 10;
    if (character >= 'A' && character <= 'F') return character - 'A' + 10;
    return 16;
}

}  // namespace

std::uint64_t start_info_address() { return payload_start_info; }

Text command_line() {
    const StartInfo* info = start_info();
    if (!info || !info->command_line) return {};
    const char* text = at<char>(info->command_line);
    std::size_t size = 0;
    while (size < max_command_line_bytes && text[size]) ++size;
    return {text, size};
}

std::size_t count_memory_pieces() {
    const StartInfo* info = start_info();
    return info && info->version >= 1 && info->memory_map ? info->memory_pieces : 0;
}

MemoryPiece memory_piece(std::size_t index) { return at<MemoryPiece>(start_info()->memory_map)[index]; }

Text option(Text key, Text otherwise) {
    const Text line = command_line();
    for (std::size_t first = 0; first < line.size;) {
        std::size_t size = 0;
        while (first + size < line.size && line.data[first + size] != ' ') ++size;
        const bool has_value = size > key.size && line.data[first + key.size] == '=';
        if (has_value && Text(line.data + first, key.size) == key)
            return {line.data + first + key.size + 1, size - key.size - 1};
        first += size + 1;
    }
    return otherwise;
}

std::uint64_t take_number(Text& text) {
    std::size_t i = 0;
    unsigned base = 10;
    if (text.size > 2 && text.data[0] == '0' && text.data[1] == 'x') {
        base = 16;
        i = 2;
    }
    std::uint64_t number = 0;
    while (i < text.size && static_cast<unsigned>(digit_of(text.data[i])) < base)
        number = number * base + static_cast<unsigned>(digit_of(text.data[i++]));
    if (i < text.size) ++i;
    text = {text.data + i, text.size - i};
    return number;
}

std::uint64_t number_option(Text key, std::uint64_t otherwise) {
    Text value = option(key);
    return value.size ? take_number(value) : otherwise;
}

std::uint64_t image_address() { return reinterpret_cast<std::uint64_t>(payload_image); }
std::uint64_t image_size_bytes() { return reinterpret_cast<std::uint64_t>(payload_image_size); }

}  // namespace guestmem::payload
