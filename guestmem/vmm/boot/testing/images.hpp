// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/endian.hpp"

/// Images for tests, built field by field: ELF of both widths, and Linux kernels without Linux.
///
/// Concepts: an ImageBytes is a growing file; put() writes a little-endian field anywhere in it. make_elf() and
/// make_kernel() give images that are right, with the places of their fields, so that a test makes one of them wrong.
/// Contract: the same options give the same bytes.
/// Threads: one at a time.
/// Example:
///     ImageBytes elf = make_elf({.is_64_bit = true, .has_pvh_note = true});
///     elf.put<std::uint64_t>(elf_program_64(0) + 32, ~0ull);   // p_filesz

namespace guestmem::vmm::testing {

class ImageBytes {
public:
    explicit ImageBytes(std::size_t size_bytes = 0) : bytes_(size_bytes) {}

    template <std::integral T>
    ImageBytes& put(std::size_t at, T value) {
        if (bytes_.size() < at + sizeof(T)) bytes_.resize(at + sizeof(T));
        store_little<T>(std::span{bytes_}.subspan(at).template first<sizeof(T)>(), value);
        return *this;
    }
    ImageBytes& put_text(std::size_t at, std::string_view text) {
        for (const char character : text) put(at++, static_cast<std::uint8_t>(character));
        return *this;
    }
    ImageBytes& resize(std::size_t size_bytes) {
        bytes_.resize(size_bytes);
        return *this;
    }
    [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }
    [[nodiscard]] std::size_t size() const { return bytes_.size(); }

private:
    std::vector<std::byte> bytes_;
};

struct ElfOptions {
    bool is_64_bit = true;
    bool has_pvh_note = true;
    std::uint32_t address = 0x100000;  ///< physical, of the code
    std::uint64_t virtual_address = 0x100000;
    std::uint64_t entry = 0x100010;
    std::uint32_t pvh_entry = 0x100020;
    std::uint32_t code_bytes = 0x100;
    std::uint32_t memory_bytes = 0x300;
    /// The segment that ld makes for headers and notes, at that address; 0: none.
    std::uint32_t note_segment_address = 0;
};

inline constexpr std::size_t elf_notes_offset = 0x180;
inline constexpr std::size_t elf_code_offset = 0x200;
/// Program headers: 0 is the code, 1 the notes, 2 the segment of headers and notes.
[[nodiscard]] constexpr std::size_t elf_program_32(std::size_t number) { return 52 + 32 * number; }
[[nodiscard]] constexpr std::size_t elf_program_64(std::size_t number) { return 64 + 56 * number; }

struct ElfProgram {
    std::uint32_t type = 1;
    std::uint32_t flags = 5;
    std::uint64_t offset = 0;
    std::uint64_t virtual_address = 0;
    std::uint64_t physical_address = 0;
    std::uint64_t file_bytes = 0;
    std::uint64_t memory_bytes = 0;
};

inline void put_program(ImageBytes& image, bool is_64_bit, std::size_t number, const ElfProgram& program) {
    if (is_64_bit) {
        const std::size_t at = elf_program_64(number);
        image.put(at, program.type).put(at + 4, program.flags).put(at + 8, program.offset);
        image.put(at + 16, program.virtual_address).put(at + 24, program.physical_address);
        image.put(at + 32, program.file_bytes).put(at + 40, program.memory_bytes);
        image.put<std::uint64_t>(at + 48, 4);
        return;
    }
    const auto narrow = [](std::uint64_t value) { return static_cast<std::uint32_t>(value); };
    const std::size_t at = elf_program_32(number);
    image.put(at, program.type).put(at + 4, narrow(program.offset));
    image.put(at + 8, narrow(program.virtual_address)).put(at + 12, narrow(program.physical_address));
    image.put(at + 16, narrow(program.file_bytes)).put(at + 20, narrow(program.memory_bytes));
    image.put(at + 24, program.flags).put<std::uint32_t>(at + 28, 4);
}

/// The code's bytes are 1, 2, 3 ... modulo 256.
inline ImageBytes make_elf(const ElfOptions& options) {
    ImageBytes image{elf_code_offset + options.code_bytes};
    const bool is_64 = options.is_64_bit;
    image
        .put_text(0,
                  "\x7f"
                  "ELF")
        .put<std::uint8_t>(4, is_64 ? 2 : 1)
        .put<std::uint8_t>(5, 1)
        .put<std::uint8_t>(6, 1);
    image.put<std::uint16_t>(16, 2).put<std::uint16_t>(18, is_64 ? 62 : 3).put<std::uint32_t>(20, 1);
    const auto count = static_cast<std::uint16_t>(options.note_segment_address != 0 ? 3 : 2);
    if (is_64) {
        image.put<std::uint64_t>(24, options.entry).put<std::uint64_t>(32, 64);
        image.put<std::uint16_t>(52, 64).put<std::uint16_t>(54, 56).put(56, count);
    } else {
        image.put<std::uint32_t>(24, static_cast<std::uint32_t>(options.entry)).put<std::uint32_t>(28, 52);
        image.put<std::uint16_t>(40, 52).put<std::uint16_t>(42, 32).put(44, count);
    }
    put_program(image, is_64, 0,
                {.offset = elf_code_offset,
                 .virtual_address = options.virtual_address,
                 .physical_address = options.address,
                 .file_bytes = options.code_bytes,
                 .memory_bytes = options.memory_bytes});
    // A note of somebody else comes first.
    std::size_t at = elf_notes_offset;
    image.put<std::uint32_t>(at, 4).put<std::uint32_t>(at + 4, 2).put<std::uint32_t>(at + 8, 18);
    image.put_text(at + 12, "GNU").put<std::uint16_t>(at + 16, 7);
    at += 20;
    if (options.has_pvh_note) {
        image.put<std::uint32_t>(at, 4).put<std::uint32_t>(at + 4, 4).put<std::uint32_t>(at + 8, 18);
        image.put_text(at + 12, "Xen").put(at + 16, options.pvh_entry);
        at += 20;
    }
    put_program(image, is_64, 1,
                {.type = 4,
                 .flags = 4,
                 .offset = elf_notes_offset,
                 .file_bytes = at - elf_notes_offset,
                 .memory_bytes = at - elf_notes_offset});
    if (options.note_segment_address != 0)
        put_program(image, is_64, 2,
                    {.flags = 4,
                     .virtual_address = options.note_segment_address,
                     .physical_address = options.note_segment_address,
                     .file_bytes = at,
                     .memory_bytes = at});
    for (std::size_t i = 0; i < options.code_bytes; ++i)
        image.put(elf_code_offset + i, static_cast<std::uint8_t>(i + 1));
    return image;
}

struct KernelOptions {
    std::uint16_t version = 0x020f;
    std::uint8_t setup_sectors = 4;
    std::uint32_t code_bytes = 0x1000;
    std::uint64_t preferred_address = 0x200000;
    std::uint32_t alignment = 0x100000;
    std::uint8_t is_relocatable = 1;
    std::uint16_t extended_load_flags = 1;
    std::uint32_t room_bytes = 0x8000;
    std::uint32_t last_initrd_address = 0x7fffffff;
    std::uint32_t command_line_bytes = 2047;
};

/// The protected-mode part's bytes are 1, 2, 3 ... modulo 256.
inline ImageBytes make_kernel(const KernelOptions& options) {
    const std::size_t code_offset = (options.setup_sectors + std::size_t{1}) * 512;
    ImageBytes image{code_offset + options.code_bytes};
    image.put(0x1f1, options.setup_sectors).put<std::uint32_t>(0x1f4, options.code_bytes / 16);
    image.put<std::uint16_t>(0x1fe, 0xaa55).put<std::uint16_t>(0x200, 0x6aeb).put_text(0x202, "HdrS");
    image.put(0x206, options.version).put<std::uint8_t>(0x211, 0x81).put<std::uint32_t>(0x214, 0x100000);
    image.put(0x22c, options.last_initrd_address).put(0x230, options.alignment);
    image.put(0x234, options.is_relocatable).put(0x236, options.extended_load_flags);
    image.put(0x238, options.command_line_bytes).put(0x258, options.preferred_address);
    image.put(0x260, options.room_bytes);
    for (std::size_t i = 0; i < options.code_bytes; ++i)
        image.put(code_offset + i, static_cast<std::uint8_t>(i + 1));
    return image;
}

}  // namespace guestmem::vmm::testing
