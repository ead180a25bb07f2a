// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/smmu_arguments.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>

namespace guestmem::dma {
namespace {

constexpr std::string_view pci_prefix = "pci:";
constexpr std::string_view mem_prefix = "mem:";
constexpr auto max_address = std::numeric_limits<std::uint64_t>::max();

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::string clipped(std::string_view text) {
    constexpr std::size_t most = 80;
    return text.size() <= most ? std::string{text} : fmt::format("{}...", text.substr(0, most));
}

/// Who copies an address from lspci writes hexadecimal numbers.
std::string advise_pci(std::string_view written) {
    if (written.starts_with(pci_prefix)) written.remove_prefix(pci_prefix.size());
    const auto address = parse_pci_address(written);
    if (!address) return "write pci:BUS:DEVICE.FUNCTION in decimal numbers, such as pci:0:31.3";
    return fmt::format("lspci's {} is {} here, in decimal numbers", to_string(*address),
                       to_smmu_device(*address));
}

bool read_permissions(const SmmuPiece& piece, AllowedRange& range, SmmuSources& sources) {
    range.can_read = range.can_write = false;
    for (std::size_t at = 0; at < piece.text.size(); ++at) {
        bool* const permission = piece.text[at] == 'r'   ? &range.can_read
                                 : piece.text[at] == 'w' ? &range.can_write
                                 : piece.text[at] == 'x' ? &range.can_execute
                                                         : nullptr;
        if (permission == nullptr || *permission) {
            sources.complain(piece.place.moved_right(at),
                             fmt::format("'{}' {}", piece.text[at],
                                         permission == nullptr ? "is no permission" : "is there already"),
                             "write r, w and x, each once or not at all: rw");
            return false;
        }
        *permission = true;
    }
    if (range.can_read || range.can_write) return true;
    sources.complain(piece.place, "a device that may neither read nor write has no memory",
                     "write r, w or rw, or leave the permissions out for rw");
    return false;
}

}  // namespace

std::vector<SmmuPiece> split_at(const SmmuPiece& piece, char separator) {
    std::vector<SmmuPiece> pieces;
    SmmuPiece rest = piece;
    while (true) {
        const std::size_t found = rest.text.find(separator);
        pieces.push_back({rest.text.substr(0, found), rest.place});
        if (found == std::string_view::npos) return pieces;
        rest = without_prefix(rest, found + 1);
    }
}

SmmuPiece without_prefix(const SmmuPiece& piece, std::size_t count) {
    return {piece.text.substr(count), piece.place.moved_right(count)};
}

std::optional<std::uint64_t> read_smmu_number(const SmmuPiece& piece, NumberStyle style,
                                              std::string_view what, std::uint64_t most,
                                              SmmuSources& sources) {
    const SmmuPiece shown{piece.text.substr(0, 80), piece.place};
    if (piece.text.empty()) {
        sources.complain(piece.place, fmt::format("no {}", what));
        return std::nullopt;
    }
    const auto number = parse_smmu_number(piece.text, style);
    if (!number && number.error().code() != Errc::out_of_range) {
        const std::string_view base = style == NumberStyle::address ? "hexadecimal" : "decimal";
        sources.complain(
            piece.place, fmt::format("{}: '{}' is no number", what, clipped(shown.text)),
            fmt::format("it is {} without a prefix; 0x and 0d say what another one is{}", base,
                        style == NumberStyle::plain ? "" : ", K, M and G behind it multiply by 1024"));
        return std::nullopt;
    }
    if (!number || *number > most) {
        sources.complain(piece.place, fmt::format("{}: {} is more than {}", what, clipped(shown.text), most));
        return std::nullopt;
    }
    return *number;
}

std::optional<std::uint64_t> read_registers(const SmmuPiece& piece, SmmuSources& sources) {
    const auto address =
        read_smmu_number(piece, NumberStyle::address, "the address of the registers", max_address, sources);
    if (!address || *address != 0) return address;
    sources.complain(piece.place, "no registers are at address 0");
    return std::nullopt;
}

std::optional<PciAddress> read_pci_function(const SmmuPiece& piece, SmmuSources& sources) {
    const auto fail = [&] {
        sources.complain(piece.place, fmt::format("'{}' is no PCI function", clipped(piece.text)),
                         advise_pci(piece.text));
        return std::nullopt;
    };
    if (!piece.text.starts_with(pci_prefix)) return fail();
    std::vector<SmmuPiece> parts = split_at(without_prefix(piece, pci_prefix.size()), ':');
    if (parts.size() < 2 || parts.size() > 3) return fail();
    const std::vector<SmmuPiece> last = split_at(parts.back(), '.');
    if (last.size() != 2) return fail();
    parts.pop_back();
    parts.insert(parts.end(), last.begin(), last.end());
    if (parts.size() == 3) parts.insert(parts.begin(), {"0", piece.place});
    static constexpr std::array<std::string_view, 4> names{"segment", "bus", "device", "function"};
    static constexpr std::array<std::uint16_t, 4> most{0xffff, 0xff, 31, 7};
    std::array<std::uint16_t, 4> values{};
    for (std::size_t at = 0; at < values.size(); ++at) {
        const auto value = parse_smmu_number(parts[at].text, NumberStyle::plain);
        if (!value) return fail();
        if (*value > most[at]) {
            sources.complain(parts[at].place, fmt::format("{} {}: at most {}", names[at], *value, most[at]));
            return std::nullopt;
        }
        values[at] = static_cast<std::uint16_t>(*value);
    }
    return pci_address(values[0], static_cast<std::uint8_t>(values[1]), static_cast<std::uint8_t>(values[2]),
                       static_cast<std::uint8_t>(values[3]));
}

std::optional<Selector> read_device(const SmmuPiece& piece, SmmuSources& sources) {
    if (piece.text.starts_with(mem_prefix)) {
        const auto registers = read_registers(without_prefix(piece, mem_prefix.size()), sources);
        if (!registers) return std::nullopt;
        return MmioDevice{.registers = *registers};
    }
    if (piece.text.starts_with(pci_prefix) || parse_pci_address(piece.text)) {
        const auto function = read_pci_function(piece, sources);
        if (!function) return std::nullopt;
        return PciRange{.segment = function->segment, .first_rid = function->rid, .last_rid = function->rid};
    }
    sources.complain(piece.place, fmt::format("'{}' is no device", clipped(piece.text)),
                     "write pci:BUS:DEVICE.FUNCTION in decimal numbers, or mem:ADDRESS");
    return std::nullopt;
}

std::optional<AllowedRange> read_range(const SmmuPiece& piece, SmmuSources& sources) {
    const std::vector<SmmuPiece> parts = split_at(piece, ',');
    if (parts.size() < 2 || parts.size() > 3) {
        sources.complain(piece.place, fmt::format("'{}' is no range", clipped(piece.text)),
                         "write START,LENGTH or START,LENGTH,PERMISSIONS, such as 0x80000000,16M,rw");
        return std::nullopt;
    }
    const auto start = read_smmu_number(parts[0], NumberStyle::address, "the start", max_address, sources);
    const auto length = read_smmu_number(parts[1], NumberStyle::size, "the length", max_address, sources);
    AllowedRange range{.first = start.value_or(0), .place = sources.describe(piece.place)};
    const bool has_permissions = parts.size() < 3 || read_permissions(parts[2], range, sources);
    if (!start || !length || !has_permissions) return std::nullopt;
    if (*length == 0 || *length - 1 > max_address - *start) {
        sources.complain(parts[1].place,
                         *length == 0 ? "a range of no bytes" : "the range goes on behind the last address");
        return std::nullopt;
    }
    range.last = *start + (*length - 1);
    return range;
}

bool is_smmu_name(const SmmuPiece& piece, std::string_view what, SmmuSources& sources) {
    const auto is_good = [](char c) {
        return is_letter(c) || is_digit(c) || c == '-' || c == '.' || c == '@' || c == ':';
    };
    const std::string_view text = piece.text;
    if (!text.empty() && text.size() <= max_smmu_name_bytes && is_letter(text.front()) &&
        std::ranges::all_of(text, is_good))
        return true;
    sources.complain(piece.place, fmt::format("'{}' is no name of {}", clipped(text), what),
                     fmt::format("a letter first, then letters, digits and any of _-.@:, at most {}",
                                 max_smmu_name_bytes));
    return false;
}

std::string to_smmu_device(PciAddress function) {
    const std::string segment = function.segment == 0 ? std::string{} : fmt::format("{}:", function.segment);
    return fmt::format("pci:{}{}:{}.{}", segment, function.bus(), function.device(), function.function());
}

std::string to_smmu_device(const Selector& device) {
    if (const auto* range = std::get_if<PciRange>(&device))
        return to_smmu_device(PciAddress{range->segment, range->first_rid});
    return to_string(device);
}

}  // namespace guestmem::dma
