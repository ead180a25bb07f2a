// SPDX-License-Identifier: Apache-2.0
// Memory as the loader describes it: RAM keeps what is written, read-only memory does not, holes are all ones.
//
// Options: `every` (bytes between two words that are tried: 0x200000), `rom=ADDRESS:SIZE,...`,
// `hole=ADDRESS,...` (where nothing is). A word is put back as it was; the payload's own image is left alone.

#include "guests/payload/lib/cpu.hpp"
#include "guests/payload/lib/paging.hpp"
#include "guests/payload/lib/payload.hpp"

namespace guestmem::payload {

namespace {

constexpr std::uint64_t pattern = 0x0f1e2d3c4b5a6978;

bool is_own(std::uint64_t address) {
    return address + 8 > image_address() && address < image_address() + image_size_bytes();
}

// Each word gets a value of its own, so that two addresses of one word are seen.
bool keeps(std::uint64_t address) {
    if (is_own(address)) return true;
    const auto old = read_device<std::uint64_t>(address);
    write_device<std::uint64_t>(address, pattern ^ address);
    const bool is_kept = read_device<std::uint64_t>(address) == (pattern ^ address);
    write_device<std::uint64_t>(address, old);
    return is_kept;
}

void check_ram(const MemoryPiece& piece, std::uint64_t every) {
    if (piece.size_bytes < 8 || !reach(piece.address, piece.size_bytes)) {
        print_line(Text("memory out of reach at "), Hex{piece.address});
        return;
    }
    const std::uint64_t last = piece.address + piece.size_bytes - 8;
    std::uint64_t first_bad = 0;
    std::uint64_t words = 0;
    std::uint64_t bad = 0;
    auto visit = [&](std::uint64_t address) {
        ++words;
        if (keeps(address)) return;
        if (!bad++) first_bad = address;
    };
    // Word 0 is an address like any other, but compilers know that nobody reads it.
    for (std::uint64_t address = piece.address ? piece.address : 8; address < last; address += every)
        visit(address);
    visit(last);
    print_line(Text("touched "), words, Text(" words from "), Hex{piece.address});
    if (bad) print_line(Text("first bad word at "), Hex{first_bad});
    check_equal("memory: RAM keeps what is written", 0, bad);
}

// Two words of the map must not be one word of memory: all are written first, then read.
void check_pieces_are_apart() {
    bool are_apart = true;
    std::uint64_t old[16] = {};
    const std::size_t pieces = count_memory_pieces();
    auto place = [](std::size_t index) {
        const MemoryPiece piece = memory_piece(index);
        return piece.address + (piece.size_bytes & ~std::uint64_t{7}) - 8;
    };
    auto is_used = [&](std::size_t index) {
        const MemoryPiece piece = memory_piece(index);
        return index < 16 && piece.type == memory_is_ram && piece.size_bytes >= 8 && !is_own(place(index)) &&
               reach(piece.address, piece.size_bytes);
    };
    for (std::size_t i = 0; i < pieces; ++i)
        if (is_used(i)) {
            old[i] = read_device<std::uint64_t>(place(i));
            write_device<std::uint64_t>(place(i), pattern ^ i);
        }
    for (std::size_t i = 0; i < pieces; ++i)
        if (is_used(i)) {
            are_apart = are_apart && read_device<std::uint64_t>(place(i)) == (pattern ^ i);
            write_device<std::uint64_t>(place(i), old[i]);
        }
    check("memory: the pieces are apart", are_apart);
}

void check_rom(std::uint64_t address, std::uint64_t size_bytes) {
    if (size_bytes < 8 || !check("memory: the ROM can be reached", reach(address, size_bytes))) return;
    const std::uint64_t places[] = {address, address + size_bytes - 8};
    for (const std::uint64_t place : places) {
        const auto before = read_device<std::uint64_t>(place);
        write_device<std::uint64_t>(place, ~before);
        const auto after = read_device<std::uint64_t>(place);
        print_line(Text("rom "), Hex{place}, Text(" before "), Hex{before}, Text(" after "), Hex{after});
        check_equal("memory: ROM is not written", before, after);
    }
}

}  // namespace

void run() {
    const std::uint64_t every = number_option("every", 0x200000);
    const std::size_t pieces = count_memory_pieces();
    check("memory: the loader has given a map", pieces > 0);
    std::uint64_t ram_bytes = 0;
    for (std::size_t i = 0; i < pieces; ++i) {
        const MemoryPiece piece = memory_piece(i);
        print_line(Text("memory "), Hex{piece.address}, Text(" size "), Hex{piece.size_bytes}, Text(" type "),
                   std::uint64_t{piece.type});
        if (piece.type != memory_is_ram) continue;
        ram_bytes += piece.size_bytes;
        check_ram(piece, every);
    }
    print_line(Text("ram bytes "), ram_bytes);
    check_pieces_are_apart();
    for (Text rom = option("rom"); rom.size;) {
        const std::uint64_t address = take_number(rom);
        check_rom(address, take_number(rom));
    }
    for (Text hole = option("hole"); hole.size;) {
        const std::uint64_t address = take_number(hole);
        if (!check("memory: the hole can be reached", reach(address, 8))) continue;
        write_device<std::uint64_t>(address, 0);
        check_equal("memory: a hole reads as all ones", ~std::uint64_t{0},
                    read_device<std::uint64_t>(address));
    }
}

}  // namespace guestmem::payload
