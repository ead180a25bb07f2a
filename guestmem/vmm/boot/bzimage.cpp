// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/bzimage.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstring>
#include <utility>

#include "guestmem/base/endian.hpp"
#include "guestmem/vmm/boot/low_memory.hpp"

namespace guestmem::vmm {

namespace {

// Offsets in the file, and in boot_params, where the header has the same place.
constexpr std::size_t at_header = 0x1f1;
constexpr std::size_t at_setup_sectors = 0x1f1;
constexpr std::size_t at_code_paragraphs = 0x1f4;
constexpr std::size_t at_boot_flag = 0x1fe;
constexpr std::size_t at_header_end = 0x201;  // a byte: the header ends that much behind 0x202
constexpr std::size_t at_magic = 0x202;
constexpr std::size_t at_version = 0x206;
constexpr std::size_t at_loader_type = 0x210;
constexpr std::size_t at_load_flags = 0x211;
constexpr std::size_t at_code32_start = 0x214;
constexpr std::size_t at_initrd_address = 0x218;
constexpr std::size_t at_initrd_bytes = 0x21c;
constexpr std::size_t at_command_line = 0x228;
constexpr std::size_t at_last_initrd_address = 0x22c;
constexpr std::size_t at_alignment = 0x230;
constexpr std::size_t at_is_relocatable = 0x234;
constexpr std::size_t at_extended_load_flags = 0x236;
constexpr std::size_t at_command_line_bytes = 0x238;
constexpr std::size_t at_setup_data = 0x250;
constexpr std::size_t at_preferred_address = 0x258;
constexpr std::size_t at_room_bytes = 0x260;
constexpr std::size_t max_header_end = 0x290;  // where boot_params goes on with other fields

// Only in boot_params.
constexpr std::size_t at_rsdp = 0x070;
constexpr std::size_t at_count_e820 = 0x1e8;
constexpr std::size_t at_e820 = 0x2d0;
static_assert(at_e820 + max_memory_map_entries * sizeof(E820Entry) <= low_memory::page_bytes);

constexpr std::uint16_t boot_flag = 0xaa55;
constexpr std::uint32_t magic_text = 0x53726448;  // "HdrS"
constexpr std::uint16_t version_2_06 = 0x0206;
constexpr std::uint16_t version_2_10 = 0x020a;
constexpr std::uint16_t version_2_12 = 0x020c;
constexpr std::uint8_t flag_loaded_high = 0x01;
constexpr std::uint8_t flag_can_use_heap = 0x80;
constexpr std::uint16_t flag_64_bit_entry = 0x01;
constexpr std::uint8_t loader_undefined = 0xff;  // "type_of_loader": no registered number
constexpr std::uint64_t sector_bytes = 512;
constexpr std::uint64_t paragraph_bytes = 16;
constexpr std::uint64_t entry_64_offset = 0x200;
constexpr std::uint64_t last_32_bit_address = 0xffffffff;

/// The header's fields by their offset in the file; what is behind its end is 0.
class Fields {
public:
    explicit Fields(std::span<const std::byte> header) : header_(header) {}
    template <std::unsigned_integral T>
    [[nodiscard]] T get(std::size_t at) const {
        const std::size_t offset = at - at_header;
        if (offset > header_.size() || sizeof(T) > header_.size() - offset) return 0;
        return load_little<T>(header_.subspan(offset).first<sizeof(T)>());
    }

private:
    std::span<const std::byte> header_;
};

template <std::unsigned_integral T>
void put(std::span<std::byte> page, std::size_t at, T value) {
    store_little<T>(page.subspan(at).first<sizeof(T)>(), value);
}

/// The bytes of the header, once it is known to be one.
Result<std::vector<std::byte>> read_header(const BootFile& file) {
    std::vector<std::byte> head = GM_TRY(file.read_head(max_header_end));
    const auto wrong = [&](std::string_view text) { return file.wrong(Errc::corrupt, text); };
    if (head.size() < at_version + 2) return wrong("too short for a Linux kernel's setup header");
    const Fields fields{std::span{head}.subspan(at_header)};
    if (fields.get<std::uint16_t>(at_boot_flag) != boot_flag ||
        fields.get<std::uint32_t>(at_magic) != magic_text)
        return wrong("no Linux kernel: no 55 aa at 0x1fe and \"HdrS\" at 0x202");
    const auto version = fields.get<std::uint16_t>(at_version);
    if (version < version_2_06)
        return file.wrong(Errc::unsupported,
                          fmt::format("Linux boot protocol {}.{:02}; 2.06 (Linux 2.6.22) or later is needed",
                                      version >> 8, version & 0xff));
    const std::size_t end = at_magic + fields.get<std::uint8_t>(at_header_end);
    if (end < at_command_line_bytes + 4 || end > max_header_end)
        return wrong(fmt::format("the setup header ends at {:#x}; {:#x} to {:#x} can be right", end,
                                 at_command_line_bytes + 4, max_header_end));
    if (head.size() < end) return wrong("the file ends inside of the setup header");
    head.resize(end);
    head.erase(head.begin(), head.begin() + at_header);
    return head;
}

Result<void> find_code(const BootFile& file, const Fields& fields, BzImage& image) {
    // 0 means 4, for kernels from before there was the field.
    const std::uint64_t sectors = fields.get<std::uint8_t>(at_setup_sectors);
    image.code_offset = ((sectors == 0 ? 4 : sectors) + 1) * sector_bytes;
    const std::uint64_t wanted = fields.get<std::uint32_t>(at_code_paragraphs) * paragraph_bytes;
    if (wanted == 0)
        return file.wrong(Errc::corrupt, "the setup header says that there is no kernel (syssize 0)");
    const std::uint64_t there =
        file.size_bytes() > image.code_offset ? file.size_bytes() - image.code_offset : 0;
    if (wanted - (paragraph_bytes - 1) > there)
        return file.wrong(
            Errc::corrupt,
            fmt::format("the file is cut short: the kernel has {} bytes from {:#x} on, and {} are "
                        "there",
                        wanted, image.code_offset, there));
    // What follows, such as a signature, is not part of the kernel.
    image.code_bytes = std::min(wanted, there);
    return {};
}

/// Where the kernel wants to be, and how much room it needs there.
Result<void> find_place(const BootFile& file, const Fields& fields, BzImage& image) {
    image.alignment = fields.get<std::uint32_t>(at_alignment);
    image.is_relocatable = fields.get<std::uint8_t>(at_is_relocatable) != 0;
    if (image.is_relocatable && !std::has_single_bit(image.alignment))
        return file.wrong(Errc::corrupt,
                          fmt::format("the kernel's alignment {:#x} is no power of two", image.alignment));
    image.preferred_address = low_memory::first_megabyte;
    image.room_bytes = image.code_bytes;
    if (image.version >= version_2_10) {
        image.preferred_address = fields.get<std::uint64_t>(at_preferred_address);
        image.room_bytes =
            std::max<std::uint64_t>(image.code_bytes, fields.get<std::uint32_t>(at_room_bytes));
    }
    if (image.preferred_address < low_memory::first_megabyte || image.preferred_address > last_32_bit_address)
        return file.wrong(Errc::corrupt,
                          fmt::format("the kernel prefers address {:#x}; 1 MiB to 4 GiB can be right",
                                      image.preferred_address));
    return {};
}

}  // namespace

Result<BzImage> read_bzimage(const BootFile& file) {
    BzImage image;
    image.header = GM_TRY(read_header(file));
    const Fields fields{image.header};
    image.version = fields.get<std::uint16_t>(at_version);
    if ((fields.get<std::uint8_t>(at_load_flags) & flag_loaded_high) == 0)
        return file.wrong(Errc::unsupported,
                          "a zImage, whose kernel is loaded below 640 KiB: make a bzImage");
    GM_TRY(find_code(file, fields, image));
    GM_TRY(find_place(file, fields, image));
    image.last_initrd_address = fields.get<std::uint32_t>(at_last_initrd_address);
    image.max_command_line_bytes = fields.get<std::uint32_t>(at_command_line_bytes);
    image.has_64_bit_entry = image.version >= version_2_12 && image.code_bytes > entry_64_offset &&
                             (fields.get<std::uint16_t>(at_extended_load_flags) & flag_64_bit_entry) != 0;
    return image;
}

Result<GuestAddress> load_bzimage(const BzImage& image, const BootFile& file, BootSpace& space,
                                  BootMemory& memory) {
    const GuestAddress preferred{image.preferred_address};
    const auto range = GuestRange::create(preferred, image.room_bytes);
    if (!range) return file.wrong(Errc::corrupt, "the kernel has no size, or wraps around 2^64");
    const std::string name = fmt::format("{}: kernel", file.name());
    GuestAddress address = preferred;
    if (const auto claimed = space.claim(name, *range); !claimed) {
        if (!image.is_relocatable) return claimed.error();
        // Below the preferred address the kernel would move itself up, to where something else may be.
        address = GM_TRY(space.claim_low(name, image.room_bytes, preferred, image.alignment)).base();
    }
    if (address.value() > last_32_bit_address || image.room_bytes - 1 > last_32_bit_address - address.value())
        return file.wrong(Errc::out_of_range,
                          fmt::format("the kernel needs {} bytes in a row below 4 GiB; {}", image.room_bytes,
                                      space.ram_text()));
    GM_TRY(file.copy_to(memory, address, image.code_offset, image.code_bytes));
    return address;
}

Result<void> write_zero_page(const BzImage& image, const ZeroPagePlan& plan, BootMemory& memory) {
    if (plan.map.size() > max_memory_map_entries || image.header.size() > max_header_end - at_header ||
        image.header.size() < at_command_line_bytes + 4 - at_header)
        return Error{Errc::invalid_argument, "zero page: the header or the memory map does not fit"};
    if (plan.initrd && plan.initrd->last().value() > last_32_bit_address)
        return Error{Errc::out_of_range, "zero page: the initrd is above 4 GiB"};
    std::vector<std::byte> page(low_memory::page_bytes);
    std::ranges::copy(image.header, page.begin() + at_header);
    const Fields fields{image.header};
    put<std::uint8_t>(page, at_loader_type, loader_undefined);
    const auto load_flags = fields.get<std::uint8_t>(at_load_flags);
    put<std::uint8_t>(page, at_load_flags, load_flags & static_cast<std::uint8_t>(~flag_can_use_heap));
    put(page, at_code32_start, static_cast<std::uint32_t>(plan.kernel.value()));
    put(page, at_command_line, static_cast<std::uint32_t>(low_memory::command_line.base));
    put(page, at_initrd_address, static_cast<std::uint32_t>(plan.initrd ? plan.initrd->base().value() : 0));
    put(page, at_initrd_bytes, static_cast<std::uint32_t>(plan.initrd ? plan.initrd->size_bytes() : 0));
    put<std::uint64_t>(page, at_setup_data, 0);
    put(page, at_rsdp, plan.rsdp ? plan.rsdp->value() : 0);
    put(page, at_count_e820, static_cast<std::uint8_t>(plan.map.size()));
    const auto entries = to_e820(plan.map);
    const auto bytes = std::as_bytes(std::span{entries});
    std::ranges::copy(bytes, page.begin() + at_e820);
    if (const auto done = memory.write_bytes(GuestAddress{low_memory::zero_page.base}, page); !done)
        return done.error().to_error(low_memory::zero_page.name);
    return {};
}

EntryState make_linux_entry(const BzImage& image, GuestAddress kernel) {
    const EntryMode mode = image.has_64_bit_entry ? EntryMode::long_64 : EntryMode::protected_32;
    // load_bzimage() has placed more than entry_64_offset bytes there.
    EntryState state =
        make_entry_state(mode, GuestAddress{kernel.value() + (image.has_64_bit_entry ? entry_64_offset : 0)});
    state.rsi = low_memory::zero_page.base;
    return state;
}

}  // namespace guestmem::vmm
