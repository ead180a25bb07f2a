// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/guest_loader.hpp"

#include <fmt/format.h>

#include <utility>

#include "guestmem/vmm/boot/bzimage.hpp"
#include "guestmem/vmm/boot/command_line.hpp"
#include "guestmem/vmm/boot/elf.hpp"
#include "guestmem/vmm/boot/low_memory.hpp"
#include "guestmem/vmm/boot/pvh.hpp"

namespace guestmem::vmm {

namespace {

/// Entered with 32-bit addresses, or with no more than the low 4 GiB mapped.
constexpr GuestAddress last_mapped_address{0xffffffff};

class Loader {
public:
    Loader(const GuestBootPlan& plan, BootMemory& memory)
        : plan_(plan), memory_(memory), space_(plan.memory.ram) {}

    Result<LoadedGuest> load() {
        if (plan_.image == nullptr) return Error{Errc::invalid_argument, "no image to start a guest from"};
        guest_.map = GM_TRY(make_memory_map(plan_.memory));
        guest_.kind = GM_TRY(find_image_kind(*plan_.image));
        if (plan_.address && guest_.kind != ImageKind::flat)
            return plan_.image->wrong(
                Errc::invalid_argument,
                fmt::format(
                    "an address, {:#x}, is for flat files; this is one of the kind {}, which has its own",
                    plan_.address->value(), to_string(guest_.kind)));
        GM_TRY(claim_low_memory());
        for (const BootData& data : plan_.data) GM_TRY(load_data(data));
        switch (guest_.kind) {
            case ImageKind::linux_kernel: GM_TRY(load_linux()); break;
            case ImageKind::elf: GM_TRY(load_elf_image()); break;
            case ImageKind::flat: GM_TRY(load_flat_image()); break;
            case ImageKind::qnx_ifs: return explain_ifs(*plan_.image);
        }
        GM_TRY(write_entry_tables(guest_.entry.mode, memory_));
        guest_.claims = space_.claims();
        return std::move(guest_);
    }

private:
    Result<void> claim_low_memory() {
        for (const low_memory::Spot& spot : low_memory::spots) {
            const auto range = GuestRange::create(GuestAddress{spot.base}, spot.size_bytes);
            if (spot.base == low_memory::acpi.base) {
                space_.block(std::string{spot.name}, *range);
            } else {
                GM_TRY(space_.claim(std::string{spot.name}, *range));
            }
        }
        // What the memory map does not call RAM is nobody's to put an image into.
        for (const ReservedPiece& piece : plan_.memory.reserved) space_.block("reserved memory", piece.range);
        for (const Claim& claim : plan_.taken) space_.block(claim.name, claim.range);
        return {};
    }

    Result<void> load_data(const BootData& data) {
        if (data.file == nullptr || data.file->size_bytes() == 0) return {};
        return load_flat(*data.file, data.address, space_, memory_);
    }

    Result<std::optional<GuestRange>> load_initrd(GuestAddress last_allowed) {
        if (plan_.initrd == nullptr || plan_.initrd->size_bytes() == 0) return std::optional<GuestRange>{};
        const BootFile& file = *plan_.initrd;
        const GuestRange range =
            GM_TRY(space_.claim_high(file.name() + ": initrd", file.size_bytes(), last_allowed));
        GM_TRY(file.copy_to(memory_, range.base(), 0, file.size_bytes()));
        return std::optional{range};
    }

    Result<void> load_linux() {
        const BzImage image = GM_TRY(read_bzimage(*plan_.image));
        const GuestAddress kernel = GM_TRY(load_bzimage(image, *plan_.image, space_, memory_));
        const auto initrd = GM_TRY(load_initrd(GuestAddress{image.last_initrd_address}));
        GM_TRY(write_command_line(plan_.command_line, image.max_command_line_bytes, memory_));
        GM_TRY(write_zero_page(
            image, {.kernel = kernel, .map = guest_.map, .initrd = initrd, .rsdp = plan_.rsdp}, memory_));
        guest_.entry = make_linux_entry(image, kernel);
        return {};
    }

    Result<void> load_elf_image() {
        const ElfImage image = GM_TRY(read_elf(*plan_.image));
        const GuestAddress entry = GM_TRY(load_elf(image, *plan_.image, space_, memory_));
        if (entry > last_mapped_address)
            return plan_.image->wrong(Errc::unsupported,
                                      fmt::format("the entry {:#x} is above 4 GiB", entry.value()));
        GM_TRY(write_start());
        if (image.pvh_entry)
            guest_.entry = make_pvh_entry(entry);
        else
            guest_.entry =
                make_payload_entry(image.is_64_bit ? EntryMode::long_64 : EntryMode::protected_32, entry);
        return {};
    }

    Result<void> load_flat_image() {
        const GuestAddress address = plan_.address.value_or(GuestAddress{default_flat_address});
        if (address > last_mapped_address)
            return plan_.image->wrong(
                Errc::unsupported, fmt::format("the address {:#x} is above 4 GiB, where a flat image is not "
                                               "mapped",
                                               address.value()));
        GM_TRY(load_flat(*plan_.image, address, space_, memory_));
        GM_TRY(write_start());
        guest_.entry = make_payload_entry(EntryMode::long_64, address);
        return {};
    }

    /// The initrd, the command line and the start information.
    Result<void> write_start() {
        const auto initrd = GM_TRY(load_initrd(last_mapped_address));
        GM_TRY(write_command_line(plan_.command_line, max_command_line_bytes, memory_));
        return write_start_info({.map = guest_.map, .initrd = initrd, .rsdp = plan_.rsdp}, memory_);
    }

    const GuestBootPlan& plan_;
    BootMemory& memory_;
    BootSpace space_;
    LoadedGuest guest_;
};

}  // namespace

Result<LoadedGuest> load_guest(const GuestBootPlan& plan, BootMemory& memory) {
    return Loader{plan, memory}.load();
}

}  // namespace guestmem::vmm
