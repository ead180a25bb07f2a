// SPDX-License-Identifier: Apache-2.0
#include "guestmem/vmm/boot/image_kind.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "guestmem/base/endian.hpp"

namespace guestmem::vmm {

namespace {

constexpr std::uint32_t ifs_signature = 0x00ff7eeb;
constexpr std::array elf_magic{std::byte{0x7f}, std::byte{'E'}, std::byte{'L'}, std::byte{'F'}};
constexpr std::array linux_magic{std::byte{'H'}, std::byte{'d'}, std::byte{'r'}, std::byte{'S'}};
constexpr std::size_t linux_magic_offset = 0x202;

// struct startup_header of QNX' <sys/startup.h>, as far as it is shown.
constexpr std::size_t ifs_version_offset = 4;
constexpr std::size_t ifs_machine_offset = 10;
constexpr std::size_t ifs_shown_bytes = 12;

bool has_at(std::span<const std::byte> head, std::size_t offset, std::span<const std::byte> magic) {
    return offset <= head.size() && magic.size() <= head.size() - offset &&
           std::ranges::equal(head.subspan(offset, magic.size()), magic);
}

std::optional<std::size_t> find_ifs(std::span<const std::byte> head) {
    for (std::size_t at = 0; at + ifs_shown_bytes <= head.size(); at += 4)
        if (load_little<std::uint32_t>(head.subspan(at).first<4>()) == ifs_signature) return at;
    return std::nullopt;
}

std::string machine_text(std::uint16_t machine) {
    switch (machine) {
        case 3: return "x86 (32 bits)";
        case 40: return "arm (32 bits)";
        case 62: return "x86-64";
        case 183: return "arm64";
        default: return fmt::format("ELF machine {}", machine);
    }
}

}  // namespace

std::string_view to_string(ImageKind kind) {
    switch (kind) {
        case ImageKind::linux_kernel: return "Linux kernel (bzImage)";
        case ImageKind::elf: return "ELF";
        case ImageKind::qnx_ifs: return "QNX image file system";
        case ImageKind::flat: return "flat";
    }
    return "?";
}

Result<ImageKind> find_image_kind(const BootFile& file) {
    const std::vector<std::byte> head = GM_TRY(file.read_head(ifs_search_bytes));
    if (head.empty()) return file.wrong(Errc::corrupt, "an empty file: there is nothing to start");
    if (has_at(head, 0, elf_magic)) return ImageKind::elf;
    if (has_at(head, linux_magic_offset, linux_magic)) return ImageKind::linux_kernel;
    if (find_ifs(head)) return ImageKind::qnx_ifs;
    return ImageKind::flat;
}

Error explain_ifs(const BootFile& file) {
    const auto head = file.read_head(ifs_search_bytes);
    if (!head) return head.error();
    const auto at = find_ifs(*head);
    if (!at) return file.wrong(Errc::invalid_argument, "no QNX image file system");
    const auto header = std::span{*head}.subspan(*at);
    const auto version = load_little<std::uint16_t>(header.subspan(ifs_version_offset).first<2>());
    const auto machine = load_little<std::uint16_t>(header.subspan(ifs_machine_offset).first<2>());
    return file.wrong(
        Errc::unsupported,
        fmt::format(
            "a QNX image file system (startup header 0x00ff7eeb at offset {:#x}, version {}, {}). How "
            "its startup program is entered by a hypervisor is not documented, so it is not guessed. "
            "Give an image that mkifs wrote as an ELF file (boot file \"elf\" in the virtual= "
            "attribute): that is loaded like every other ELF file",
            *at, version, machine_text(machine)));
}

}  // namespace guestmem::vmm
