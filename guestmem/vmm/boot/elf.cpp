// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/elf.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>

#include "guestmem/mem/object.hpp"

namespace guestmem::vmm {

namespace {

// System V ABI, chapters 4 and 5; the numbers of both widths.
constexpr std::size_t ident_bytes = 16;
constexpr std::uint8_t class_32 = 1;
constexpr std::uint8_t class_64 = 2;
constexpr std::uint8_t little_endian = 1;
constexpr std::uint16_t type_executable = 2;
constexpr std::uint16_t type_shared = 3;
constexpr std::uint16_t machine_386 = 3;
constexpr std::uint16_t machine_x86_64 = 62;
constexpr std::uint32_t segment_load = 1;
constexpr std::uint32_t segment_note = 4;
constexpr std::uint32_t flag_executable = 1;
// Headers and notes of a small image are a few hundred bytes; each byte is looked up in all headers.
constexpr std::size_t max_header_segment_bytes = 4096;
constexpr std::uint32_t note_pvh_entry = 18;  // XEN_ELFNOTE_PHYS32_ENTRY, xen/include/public/elfnote.h

template <typename Word>
struct FileHeader {
    std::array<std::byte, ident_bytes> ident;
    Le16 type;
    Le16 machine;
    Le32 version;
    Word entry;
    Word program_headers_offset;
    Word section_headers_offset;
    Le32 flags;
    Le16 header_bytes;
    Le16 program_header_bytes;
    Le16 count_program_headers;
    Le16 section_header_bytes;
    Le16 count_section_headers;
    Le16 names_section;
};
static_assert(sizeof(FileHeader<Le32>) == 52 && sizeof(FileHeader<Le64>) == 64);

struct ProgramHeader32 {
    Le32 type;
    Le32 file_offset;
    Le32 virtual_address;
    Le32 physical_address;
    Le32 file_bytes;
    Le32 memory_bytes;
    Le32 flags;
    Le32 alignment;
};
static_assert(sizeof(ProgramHeader32) == 32);

struct ProgramHeader64 {
    Le32 type;
    Le32 flags;
    Le64 file_offset;
    Le64 virtual_address;
    Le64 physical_address;
    Le64 file_bytes;
    Le64 memory_bytes;
    Le64 alignment;
};
static_assert(sizeof(ProgramHeader64) == 56);

struct NoteHeader {
    Le32 name_bytes;
    Le32 value_bytes;
    Le32 type;
};

/// A run of the file; both numbers have been checked against its size.
struct FileRun {
    std::uint64_t offset = 0;
    std::uint64_t size_bytes = 0;
    [[nodiscard]] bool contains(std::uint64_t at) const { return at - offset < size_bytes; }
};

/// A program header of either width.
struct Header {
    std::uint32_t type = 0;
    std::uint64_t alignment = 0;
    ElfSegment segment;
};

template <typename T>
Result<T> read_object(const BootFile& file, std::uint64_t offset) {
    T object;
    GM_TRY(file.read(offset, std::as_writable_bytes(std::span{&object, 1})));
    return object;
}

template <typename Program>
Header to_header(const Program& program, unsigned number) {
    Header header;
    header.type = program.type.value();
    header.alignment = program.alignment.value();
    header.segment = {.number = number,
                      .physical_address = program.physical_address.value(),
                      .virtual_address = program.virtual_address.value(),
                      .file_offset = program.file_offset.value(),
                      .file_bytes = program.file_bytes.value(),
                      .memory_bytes = program.memory_bytes.value(),
                      .is_executable = (program.flags.value() & flag_executable) != 0};
    return header;
}

class Reader {
public:
    explicit Reader(const BootFile& file) : file_(file) {}

    Result<ElfImage> read() {
        const auto ident = GM_TRY((read_object<std::array<std::byte, ident_bytes>>(file_, 0)));
        constexpr std::array magic{std::byte{0x7f}, std::byte{'E'}, std::byte{'L'}, std::byte{'F'}};
        if (!std::ranges::equal(magic, std::span{ident}.first(magic.size())))
            return file_.wrong(Errc::corrupt, "no ELF file: it does not begin with 7f 45 4c 46");
        const auto width = std::to_integer<std::uint8_t>(ident[4]);
        if (width != class_32 && width != class_64)
            return file_.wrong(Errc::corrupt, fmt::format("ELF class {}; known are 1 and 2", width));
        if (std::to_integer<std::uint8_t>(ident[5]) != little_endian)
            return file_.wrong(Errc::unsupported, "a big-endian ELF file, not one for x86");
        image_.is_64_bit = width == class_64;
        if (image_.is_64_bit)
            GM_TRY((read_headers<FileHeader<Le64>, ProgramHeader64>(machine_x86_64)));
        else
            GM_TRY((read_headers<FileHeader<Le32>, ProgramHeader32>(machine_386)));
        for (const Header& header : headers_)
            if (header.type == segment_note) GM_TRY(read_notes(header));
        for (const Header& header : headers_)
            if (header.type == segment_load) GM_TRY(add_segment(header.segment));
        if (image_.segments.empty())
            return file_.wrong(Errc::corrupt, "an ELF file without anything to load (PT_LOAD)");
        return std::move(image_);
    }

private:
    template <typename FileHeaderType, typename Program>
    Result<void> read_headers(std::uint16_t machine) {
        const auto header = GM_TRY(read_object<FileHeaderType>(file_, 0));
        if (header.type.value() == type_shared)
            return file_.wrong(Errc::unsupported,
                               "an ELF file that has to be relocated (ET_DYN): link it with -no-pie");
        if (header.type.value() != type_executable)
            return file_.wrong(Errc::unsupported, fmt::format("ELF type {}; only executables (2) can start",
                                                              header.type.value()));
        if (header.machine.value() != machine)
            return file_.wrong(Errc::unsupported,
                               fmt::format("ELF{} for machine {}; it would have to be {}, for x86",
                                           image_.is_64_bit ? 64 : 32, header.machine.value(), machine));
        const std::size_t count = header.count_program_headers.value();
        if (count == 0 || count > max_elf_segments)
            return file_.wrong(Errc::corrupt, fmt::format("{} program headers; 1 to {} can be read", count,
                                                          max_elf_segments));
        if (header.program_header_bytes.value() != sizeof(Program))
            return file_.wrong(Errc::corrupt,
                               fmt::format("program headers of {} bytes; they have {}",
                                           header.program_header_bytes.value(), sizeof(Program)));
        image_.entry = header.entry.value();
        const std::uint64_t offset = header.program_headers_offset.value();
        std::vector<Program> programs(count);
        GM_TRY_CONTEXT(file_.read(offset, std::as_writable_bytes(std::span{programs})), "program headers");
        known_.push_back({0, sizeof(FileHeaderType)});
        known_.push_back({offset, count * sizeof(Program)});
        for (unsigned i = 0; i < count; ++i) headers_.push_back(to_header(programs[i], i));
        return {};
    }

    /// Whether the segment's bytes are all in the file.
    Result<void> check_in_file(const ElfSegment& segment) const {
        if (segment.file_offset <= file_.size_bytes() &&
            segment.file_bytes <= file_.size_bytes() - segment.file_offset)
            return {};
        return file_.wrong(
            Errc::corrupt,
            fmt::format("segment {}: {} bytes at offset {:#x} leave the file, which has {}", segment.number,
                        segment.file_bytes, segment.file_offset, file_.size_bytes()));
    }

    Result<void> read_notes(const Header& header) {
        const ElfSegment& segment = header.segment;
        GM_TRY(check_in_file(segment));
        if (segment.file_bytes > max_elf_note_bytes)
            return file_.wrong(Errc::unsupported,
                               fmt::format("segment {}: {} bytes of notes; at most {} are read",
                                           segment.number, segment.file_bytes, max_elf_note_bytes));
        known_.push_back({segment.file_offset, segment.file_bytes});
        std::vector<std::byte> bytes(static_cast<std::size_t>(segment.file_bytes));
        GM_TRY(file_.read(segment.file_offset, bytes));
        const std::size_t alignment = header.alignment == 8 ? 8 : 4;
        for (std::span<const std::byte> rest{bytes}; rest.size() >= sizeof(NoteHeader);) {
            NoteHeader note;
            std::memcpy(&note, rest.data(), sizeof note);
            rest = rest.subspan(sizeof note);
            const std::span<const std::byte> name =
                GM_TRY(take(rest, note.name_bytes.value(), alignment, segment));
            const std::span<const std::byte> value =
                GM_TRY(take(rest, note.value_bytes.value(), alignment, segment));
            if (note.type.value() == note_pvh_entry && is_xen(name)) GM_TRY(take_entry(value, segment));
        }
        return {};
    }

    /// The next `count` bytes of notes; what follows is aligned.
    Result<std::span<const std::byte>> take(std::span<const std::byte>& rest, std::uint32_t count,
                                            std::size_t alignment, const ElfSegment& segment) const {
        if (count > rest.size())
            return file_.wrong(Errc::corrupt,
                               fmt::format("segment {}: a note says that it has {} bytes, and {} are left",
                                           segment.number, count, rest.size()));
        const auto taken = rest.first(count);
        const std::size_t padded = (std::size_t{count} + alignment - 1) / alignment * alignment;
        rest = rest.subspan(std::min(padded, rest.size()));
        return taken;
    }

    static bool is_xen(std::span<const std::byte> name) {
        constexpr std::string_view wanted{"Xen\0", 4};
        return std::ranges::equal(name, std::as_bytes(std::span{wanted}));
    }

    Result<void> take_entry(std::span<const std::byte> value, const ElfSegment& segment) {
        if (value.size() != 4 && value.size() != 8)
            return file_.wrong(Errc::corrupt,
                               fmt::format("segment {}: a PVH entry of {} bytes; it has 4 or 8",
                                           segment.number, value.size()));
        std::uint64_t entry = 0;
        for (std::size_t i = value.size(); i-- > 0;)
            entry = entry << 8 | std::to_integer<std::uint8_t>(value[i]);
        if (!std::in_range<std::uint32_t>(entry))
            return file_.wrong(
                Errc::corrupt,
                fmt::format("segment {}: the PVH entry {:#x} is above 4 GiB, where 32-bit code "
                            "cannot be",
                            segment.number, entry));
        if (image_.pvh_entry && *image_.pvh_entry != entry)
            return file_.wrong(Errc::corrupt,
                               fmt::format("two PVH entries, {:#x} and {:#x}", *image_.pvh_entry, entry));
        image_.pvh_entry = static_cast<std::uint32_t>(entry);
        return {};
    }

    Result<void> add_segment(ElfSegment segment) {
        GM_TRY(check_in_file(segment));
        if (segment.file_bytes > segment.memory_bytes)
            return file_.wrong(Errc::corrupt,
                               fmt::format("segment {}: {} bytes in the file for {} bytes of memory",
                                           segment.number, segment.file_bytes, segment.memory_bytes));
        if (segment.memory_bytes == 0) return {};
        if (!GuestRange::create(GuestAddress{segment.physical_address}, segment.memory_bytes))
            return file_.wrong(Errc::corrupt,
                               fmt::format("segment {}: {:#x} bytes at {:#x} wrap around 2^64",
                                           segment.number, segment.memory_bytes, segment.physical_address));
        segment.has_only_headers = GM_TRY(has_only_headers(segment));
        image_.segments.push_back(segment);
        return {};
    }

    /// Nothing but the file's headers, notes, and zeros between them.
    Result<bool> has_only_headers(const ElfSegment& segment) const {
        if (segment.file_bytes != segment.memory_bytes || segment.file_bytes > max_header_segment_bytes)
            return false;
        std::vector<std::byte> bytes(static_cast<std::size_t>(segment.file_bytes));
        GM_TRY(file_.read(segment.file_offset, bytes));
        bool has_known = false;
        for (std::size_t i = 0; i < bytes.size(); ++i) {
            const auto is_here = [&](const FileRun& run) { return run.contains(segment.file_offset + i); };
            const bool is_known = std::ranges::any_of(known_, is_here);
            if (bytes[i] != std::byte{0} && !is_known) return false;
            has_known = has_known || is_known;
        }
        return has_known;
    }

    const BootFile& file_;
    ElfImage image_;
    std::vector<Header> headers_;
    std::vector<FileRun> known_;  ///< headers and notes
};

/// The distance of `address` from `base`, when it is one of the `count` addresses from there on.
std::optional<std::uint64_t> offset_in(std::uint64_t address, std::uint64_t base, std::uint64_t count) {
    if (address - base >= count || address < base) return std::nullopt;
    return address - base;
}

/// Where the entry is in physical memory; nothing when no segment is there.
std::optional<GuestAddress> find_entry(const ElfImage& image, std::span<const ElfSegment> loaded) {
    for (const ElfSegment& segment : loaded) {
        if (image.pvh_entry && offset_in(*image.pvh_entry, segment.physical_address, segment.memory_bytes))
            return GuestAddress{*image.pvh_entry};
    }
    if (image.pvh_entry) return std::nullopt;
    for (const ElfSegment& segment : loaded) {
        if (segment.is_executable && offset_in(image.entry, segment.physical_address, segment.memory_bytes))
            return GuestAddress{image.entry};
    }
    for (const ElfSegment& segment : loaded) {
        const auto offset = offset_in(image.entry, segment.virtual_address, segment.memory_bytes);
        if (offset) return GuestAddress{segment.physical_address + *offset};
    }
    return std::nullopt;
}

}  // namespace

Result<ElfImage> read_elf(const BootFile& file) { return Reader{file}.read(); }

Result<GuestAddress> load_elf(const ElfImage& image, const BootFile& file, BootSpace& space,
                              BootMemory& memory) {
    std::vector<ElfSegment> loaded;
    for (const ElfSegment& segment : image.segments) {
        const auto range = GuestRange::create(GuestAddress{segment.physical_address}, segment.memory_bytes);
        if (!range) return file.wrong(Errc::corrupt, fmt::format("segment {} wraps", segment.number));
        const auto claimed = space.claim(fmt::format("{}: segment {}", file.name(), segment.number), *range);
        if (!claimed && segment.has_only_headers) continue;
        if (!claimed) return claimed.error();
        loaded.push_back(segment);
    }
    const auto entry = find_entry(image, loaded);
    if (!entry)
        return file.wrong(Errc::corrupt, fmt::format("the {} {:#x} is in no segment that is loaded",
                                                     image.pvh_entry ? "PVH entry" : "entry",
                                                     image.pvh_entry ? *image.pvh_entry : image.entry));
    for (const ElfSegment& segment : loaded) {
        const GuestAddress address{segment.physical_address};
        GM_TRY(file.copy_to(memory, address, segment.file_offset, segment.file_bytes));
        const std::uint64_t rest = segment.memory_bytes - segment.file_bytes;
        if (rest == 0) continue;
        const GuestAddress behind{segment.physical_address + segment.file_bytes};
        if (const auto filled = memory.fill(behind, std::byte{0}, rest); !filled)
            return filled.error().to_error(fmt::format("{}: segment {}", file.name(), segment.number));
    }
    return *entry;
}

}  // namespace guestmem::vmm
