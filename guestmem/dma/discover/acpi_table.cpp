// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/acpi_table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>

namespace guestmem::dma {
namespace {

/// What max_table_complaints take with their texts, out of memory_beside_table_bytes.
constexpr std::size_t complaints_bytes = std::size_t{256} * 1024;
/// The least that an allocation takes from the heap (glibc), and what each takes beside its bytes.
constexpr std::size_t heap_least_bytes = 32;
constexpr std::size_t heap_beside_bytes = 16;
/// A string keeps fewer bytes than this in itself (libstdc++).
constexpr std::size_t string_inside_bytes = 16;

std::size_t heap_bytes(std::size_t bytes) {
    return bytes == 0 ? 0 : std::max(heap_least_bytes, bytes + heap_beside_bytes);
}

/// Of a copy, which has no capacity to spare.
std::size_t heap_bytes_of_copy(const std::string& text) {
    return text.size() < string_inside_bytes ? 0 : heap_bytes(text.size() + 1);
}

std::size_t heap_bytes(const std::string& text) {
    return text.capacity() < string_inside_bytes ? 0 : heap_bytes(text.capacity() + 1);
}

std::size_t heap_bytes(const Origin& origin) { return heap_bytes(origin.place); }

std::size_t heap_bytes(const PciPath& path) { return heap_bytes(path.hops.capacity() * sizeof(PciHop)); }

std::size_t heap_bytes(const Selector& selector) {
    if (const auto* const path = std::get_if<PciPath>(&selector)) {
        return heap_bytes(*path);
    }
    if (const auto* const named = std::get_if<NamedDevice>(&selector)) {
        return heap_bytes(named->path);
    }
    return 0;
}

std::size_t heap_bytes(const std::vector<Selector>& selectors) {
    const auto add = [](std::size_t sum, const Selector& selector) { return sum + heap_bytes(selector); };
    return std::accumulate(selectors.begin(), selectors.end(),
                           heap_bytes(selectors.capacity() * sizeof(Selector)), add);
}

bool is_path_character(char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
}

std::uint8_t sum_of(std::span<const std::byte> bytes) {
    unsigned sum = 0;
    for (const std::byte byte : bytes) {
        sum += std::to_integer<unsigned>(byte);
    }
    return static_cast<std::uint8_t>(sum);
}

}  // namespace

TableFacts::TableFacts(Source source, std::size_t table_bytes)
    : source_(source),
      table_bytes_(table_bytes),
      limit_bytes_(std::min(table_bytes, max_facts * sizeof(CoverFact)) * (memory_per_table_byte - 1) +
                   memory_beside_table_bytes - complaints_bytes) {}

Origin TableFacts::origin(std::size_t offset) const {
    // Without fmt: there is one for each fact, and facts have nanoseconds.
    constexpr std::string_view before = "offset 0x";
    std::array<char, before.size() + 2 * sizeof offset> text;
    std::ranges::copy(before, text.begin());
    const std::size_t digits = (static_cast<std::size_t>(std::bit_width(offset | 1)) + 3) / 4;
    for (std::size_t i = 0; i < digits; ++i) {
        text[before.size() + digits - 1 - i] = "0123456789abcdef"[offset >> (4 * i) & 0xf];
    }
    return {source_, std::string(text.data(), before.size() + digits), {}};
}

template <typename T>
bool TableFacts::make_room(std::vector<T>& facts, std::size_t wanted) {
    const std::size_t most = (limit_bytes_ - used_bytes_) / sizeof(T);
    if (most <= facts.size()) {
        return false;
    }
    const std::size_t before = facts.capacity();
    // Both blocks are there while the facts move.
    facts.reserve(std::min(wanted, most));
    used_bytes_ += (facts.capacity() - before) * sizeof(T);
    return true;
}

/// False when there is none; the table is full then.
template <typename T>
bool TableFacts::take_room(std::vector<T>& facts, std::size_t count, std::size_t bytes) {
    if (is_full_) {
        return false;
    }
    const bool has_room =
        count <= max_facts - count_ &&
        (facts.size() < facts.capacity() || make_room(facts, std::max<std::size_t>(16, facts.size() * 2))) &&
        bytes <= limit_bytes_ - used_bytes_;
    if (!has_room) {
        is_full_ = true;
        return false;
    }
    used_bytes_ += bytes;
    count_ += count;
    return true;
}

bool TableFacts::add(UnitFact fact) {
    if (!take_room(found_.units, 1, heap_bytes(fact.name) + heap_bytes(fact.origin))) {
        return false;
    }
    found_.units.push_back(std::move(fact));
    return true;
}

bool TableFacts::add(const CoverFact& fact) {
    // What the selector has to spare is counted, too: it is little.
    const std::size_t bytes =
        heap_bytes_of_copy(fact.unit) + heap_bytes(fact.which) + heap_bytes_of_copy(fact.origin.place);
    if (!take_room(found_.covers, 1, bytes)) {
        return false;
    }
    found_.covers.push_back(fact);
    return true;
}

bool TableFacts::add(CoverFact&& fact) {
    const std::size_t bytes = heap_bytes(fact.unit) + heap_bytes(fact.which) + heap_bytes(fact.origin);
    if (!take_room(found_.covers, 1, bytes)) {
        return false;
    }
    found_.covers.push_back(std::move(fact));
    return true;
}

bool TableFacts::add(ReservedFact fact) {
    if (!take_room(found_.reserved, 1 + fact.who.size(), heap_bytes(fact.who) + heap_bytes(fact.origin))) {
        return false;
    }
    found_.reserved.push_back(std::move(fact));
    return true;
}

bool TableFacts::take_cover_room(const std::string& unit, std::size_t which_bytes, std::size_t offset) {
    const std::size_t place_bytes = offset >> 24 == 0 ? 0 : heap_least_bytes;  // "offset 0xabcdef" is inside
    return take_room(found_.covers, 1, heap_bytes_of_copy(unit) + which_bytes + place_bytes);
}

std::size_t TableFacts::heap_bytes_of(const Selector& which) { return heap_bytes(which); }
std::size_t TableFacts::heap_bytes_of(const PciPath& which) { return heap_bytes(which); }
std::size_t TableFacts::heap_bytes_of(const NamedDevice& which) { return heap_bytes(which.path); }

void TableFacts::expect_covers(std::size_t count) {
    const std::size_t wanted = found_.covers.size() + count;
    if (count > max_facts - count_) {
        is_full_ = true;
    } else if (wanted > found_.covers.capacity() &&
               !(make_room(found_.covers, wanted) && wanted <= found_.covers.capacity())) {
        is_full_ = true;
    }
}

Result<SourceFacts> TableFacts::finish() && {
    if (is_full_) {
        return Error{
            Errc::out_of_range,
            fmt::format("{}: a table of {} bytes with more than {} entries, or with entries that take "
                        "more than {} bytes of memory: no firmware writes such a table; read it with "
                        "iasl -d, or describe the devices by hand",
                        to_string(source_), table_bytes_, max_facts, limit_bytes_)};
    }
    if (unlisted_complaints_ > 0) {
        found_.complaints.push_back(
            {Origin{source_, {}, {}}, fmt::format("{} more errors are not listed", unlisted_complaints_)});
    }
    return std::move(found_);
}

Result<TableBytes> open_acpi_table(std::span<const std::byte> bytes, std::string_view signature,
                                   std::size_t fixed_bytes, TableFacts& facts) {
    fixed_bytes = std::max(fixed_bytes, acpi_header_bytes);
    if (bytes.size() < fixed_bytes) {
        return Error{Errc::corrupt,
                     fmt::format("{} table: {} bytes, its fixed part has {}: the file is cut off", signature,
                                 bytes.size(), fixed_bytes)};
    }
    const TableBytes file{bytes};
    const std::string found = printable(bytes.first(4));
    if (found != signature) {
        return Error{Errc::corrupt,
                     fmt::format("{} table: its signature is '{}': this is another table", signature, found)};
    }
    const std::size_t length = file.get<std::uint32_t>(4);
    if (length < fixed_bytes) {
        return Error{Errc::corrupt,
                     fmt::format("{} table: its length field says {} bytes, its fixed part has {}", signature,
                                 length, fixed_bytes)};
    }
    if (length > bytes.size()) {
        facts.complain(4, [&] {
            return fmt::format("the length field says {} bytes, {} are there: read as far as they go", length,
                               bytes.size());
        });
        return file;
    }
    if (length < bytes.size()) {
        facts.complain(4, [&] {
            return fmt::format("the length field says {} bytes, {} are there: what is behind is not read",
                               length, bytes.size());
        });
    }
    const TableBytes table = file.part(0, length);
    if (const std::uint8_t sum = sum_of(table.bytes()); sum != 0) {
        facts.complain(9, [&] {
            return fmt::format(
                "wrong checksum: the bytes add up to {:#04x} and should to 0; its words are used", sum);
        });
    }
    return table;
}

std::optional<std::string> acpi_path(TableBytes bytes) {
    const std::span<const std::byte> all =
        bytes.bytes().first(std::min(bytes.size_bytes(), max_acpi_path_bytes + 1));
    const auto nul = std::ranges::find(all, std::byte{0});
    if (nul == all.begin() || nul == all.end()) {
        return std::nullopt;
    }
    std::string path;
    std::size_t name_bytes = 0;
    bool is_before_names = true;
    const auto end_name = [&] {
        path.append(name_bytes == 0 || name_bytes > 4 ? 0 : 4 - name_bytes, '_');
        return name_bytes >= 1 && name_bytes <= 4;
    };
    for (auto at = all.begin(); at != nul; ++at) {
        const char c = std::to_integer<char>(*at);
        if (is_before_names && (c == '\\' || c == '^')) {
            path += c;
        } else if (c == '.') {
            if (!end_name()) {
                return std::nullopt;
            }
            path += c;
            name_bytes = 0;
        } else if (is_path_character(c)) {
            path += c;
            ++name_bytes;
            is_before_names = false;
        } else {
            return std::nullopt;
        }
    }
    return end_name() ? std::optional{path} : std::nullopt;
}

std::string printable(std::span<const std::byte> bytes) {
    const auto nul = std::ranges::find(bytes, std::byte{0});
    std::string text(static_cast<std::size_t>(nul - bytes.begin()), '?');
    std::transform(bytes.begin(), nul, text.begin(), [](std::byte byte) {
        const char c = std::to_integer<char>(byte);
        return c >= ' ' && c <= '~' ? c : '?';
    });
    return text;
}

}  // namespace guestmem::dma
