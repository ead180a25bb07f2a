// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/sysfs_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

namespace guestmem::dma {
namespace {

constexpr std::string_view blanks = " \t\n\r";
constexpr std::size_t most_text_bytes = 255;

std::string_view trimmed(std::string_view text) {
    const std::size_t first = text.find_first_not_of(blanks);
    if (first == std::string_view::npos) return {};
    return text.substr(first, text.find_last_not_of(blanks) - first + 1);
}

std::string for_people(std::string_view text) {
    std::string plain{text.substr(0, most_text_bytes)};
    for (char& c : plain)
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
    return plain;
}

/// Takes a word off the front.
std::string_view take_word(std::string_view& text) {
    text = trimmed(text);
    const std::string_view word = text.substr(0, text.find_first_of(blanks));
    text.remove_prefix(word.size());
    return word;
}

std::string_view take_line(std::string_view& text) {
    const std::size_t line_bytes = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, line_bytes);
    text.remove_prefix(std::min(line_bytes + 1, text.size()));
    return line;
}

struct RegionKind {
    std::string_view name;
    ReservedKind kind;
};
constexpr std::array<RegionKind, 4> region_kinds{
    {{.name = "direct", .kind = ReservedKind::direct},
     {.name = "direct-relaxable", .kind = ReservedKind::direct_relaxable},
     {.name = "reserved", .kind = ReservedKind::reserved},
     {.name = "msi", .kind = ReservedKind::msi}}};

std::optional<KernelReserved> parse_region(std::string_view line) {
    const auto first = parse_hexadecimal(take_word(line));
    const auto last = parse_hexadecimal(take_word(line));
    const auto kind = std::ranges::find(region_kinds, take_word(line), &RegionKind::name);
    if (!first || !last || *last < *first || kind == region_kinds.end()) return std::nullopt;
    return KernelReserved{.first = *first, .last = *last, .kind = kind->kind};
}

}  // namespace

std::optional<std::uint64_t> parse_hexadecimal(std::string_view text) {
    text = trimmed(text);
    if (text.starts_with("0x") || text.starts_with("0X")) text.remove_prefix(2);
    std::uint64_t value = 0;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
    if (error != std::errc{} || stop != text.data() + text.size()) return std::nullopt;
    return value;
}

std::string plain_line(std::string_view text) { return for_people(trimmed(text.substr(0, text.find('\n')))); }

std::string last_part(std::string_view target) {
    while (target.ends_with('/')) target.remove_suffix(1);
    return for_people(target.substr(target.rfind('/') + 1));
}

std::string device_tree_path(std::string_view target) {
    constexpr std::string_view base = "firmware/devicetree/base";
    const std::size_t at = target.find(base);
    if (at == std::string_view::npos) return {};
    const std::string_view path = target.substr(at + base.size());
    if (path.empty()) return "/";
    return path.starts_with('/') ? for_people(path) : std::string{};
}

std::optional<std::vector<KernelReserved>> parse_reserved_regions(std::string_view text) {
    std::vector<KernelReserved> regions;
    while (!text.empty()) {
        const std::string_view line = take_line(text);
        if (trimmed(line).empty()) continue;
        const auto region = parse_region(line);
        if (!region) return std::nullopt;
        regions.push_back(*region);
    }
    return regions;
}

std::optional<std::uint64_t> first_memory_region(std::string_view text) {
    constexpr std::uint64_t is_memory = 0x200;  // IORESOURCE_MEM
    while (!text.empty()) {
        std::string_view line = take_line(text);
        const auto first = parse_hexadecimal(take_word(line));
        const auto last = parse_hexadecimal(take_word(line));
        const auto flags = parse_hexadecimal(take_word(line));
        if (first && last && flags && *first != 0 && (*flags & is_memory) != 0) return first;
    }
    return std::nullopt;
}

void ComplaintBook::note(std::string_view kind, std::string_view text, std::string_view place) {
    auto at = kinds_.find(kind);
    if (at == kinds_.end())
        at = kinds_.emplace(kind, Kind{.text = std::string{text}, .place = std::string{place}}).first;
    ++at->second.count;
}

std::vector<Complaint> ComplaintBook::complaints() const {
    std::vector<Complaint> all;
    for (const auto& [name, kind] : kinds_) {
        const std::string more = kind.count > 1 ? fmt::format(" (and {} more)", kind.count - 1) : "";
        all.push_back({.origin = {.source = Source::kernel, .place = for_people(kind.place)},
                       .text = kind.text + more});
    }
    return all;
}

}  // namespace guestmem::dma
