// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/viot.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "guestmem/dma/discover/acpi_table.hpp"
#include "guestmem/dma/discover/cover_pieces.hpp"

namespace guestmem::dma {
namespace {

// ACPI specification 6.5, "Virtual I/O Translation Table".
enum NodeType : std::uint8_t { pci_range = 1, mmio_endpoint = 2, pci_unit = 3, mmio_unit = 4 };
constexpr std::size_t header_bytes = 48;
constexpr std::size_t node_header_bytes = 4;

constexpr std::size_t least_bytes(std::uint8_t type) {
    return type == pci_range || type == mmio_endpoint ? 24 : 16;
}

constexpr std::uint16_t no_unit = 0xffff;

constexpr std::uint32_t place_of(std::uint32_t segment, std::uint16_t rid) { return segment << 16 | rid; }

struct Node {
    std::uint32_t offset = 0;
    std::uint16_t unit = no_unit;  ///< of a range that is used: in SourceFacts::units
    std::uint16_t last_segment = 0;
    std::uint8_t type = 0;
};

struct UnitAt {
    std::uint32_t offset = 0;
    std::uint16_t index = 0;  ///< in SourceFacts::units
};

class ViotReader {
public:
    ViotReader(const TableBytes& table, TableFacts& facts) : table_(table), facts_(facts) {}

    Result<void> read() {
        find_nodes();
        if (static_cast<std::size_t>(std::ranges::count_if(nodes_, is_unit)) > max_viot_units)
            return Error{
                Errc::out_of_range,
                fmt::format("VIOT table: more than {} virtio-iommus: no machine has them", max_viot_units)};
        for (const Node& node : nodes_)
            if (is_unit(node)) add_unit(node);
        for (Node& node : nodes_)
            if (node.type == pci_range) check_range(node);
        find_contested();
        for (const Node& node : nodes_) {
            if (facts_.is_full()) break;
            if (node.type == pci_range && node.unit != no_unit) add_range(node);
            if (node.type == mmio_endpoint) add_endpoint(node);
        }
        return {};
    }

private:
    static bool is_unit(const Node& node) { return node.type == pci_unit || node.type == mmio_unit; }

    void find_nodes();
    void add_unit(const Node& node);
    void check_range(Node& node);
    void find_contested();
    void add_range(const Node& node);
    bool add_segment(CoverFact& cover, std::optional<PciAddress> self, std::size_t offset,
                     PciRange functions);
    bool add_contested(const CoverFact& cover, std::optional<PciAddress> self, std::size_t offset,
                       PciRange functions);
    void add_endpoint(const Node& node);
    const UnitAt* find_unit(const Node& node);

    TableBytes table_;
    TableFacts& facts_;
    std::vector<Node> nodes_;
    std::vector<UnitAt> units_;  // by offset
    std::unordered_map<std::uint64_t, std::uint16_t> at_registers_;
    std::unordered_map<std::uint64_t, std::uint16_t> at_function_;
    std::uint32_t more_segments_ = max_viot_more_segments;
    // Of segment << 16 | requester id:
    std::vector<Piece> contested_;  // where ranges overlap; disjoint, in ascending order
    Claims claims_;                 // in these
    std::size_t contested_left_ = max_viot_contested;
};

void ViotReader::find_nodes() {
    const std::uint16_t count = table_.get<std::uint16_t>(36);
    std::size_t at = table_.get<std::uint16_t>(38);
    if (at < header_bytes)
        return facts_.complain(38,
                               [&] { return fmt::format("the first node at {:#x} lies in the header", at); });
    nodes_.reserve(std::min<std::size_t>(count, table_.size_bytes() / least_bytes(pci_range)));
    std::size_t found = 0;
    for (; found < count && table_.has(at, node_header_bytes); ++found) {
        Node node;
        node.offset = static_cast<std::uint32_t>(at);
        node.type = table_.get<std::uint8_t>(at);
        const std::uint16_t length = table_.get<std::uint16_t>(at + 2);
        if (length < node_header_bytes || !table_.has(at, length))
            return facts_.complain(at, [&] {
                return fmt::format("a node of {} bytes, {} are left: it and what follows are not read",
                                   length, table_.size_bytes() - at);
            });
        if (node.type < pci_range || node.type > mmio_unit) {
            facts_.complain(
                at, [&] { return fmt::format("a node of unknown type {} is passed over", node.type); });
        } else if (length < least_bytes(node.type)) {
            facts_.complain(at, [&] {
                return fmt::format("a node of type {} with {} bytes, it has {}: it is passed over", node.type,
                                   length, least_bytes(node.type));
            });
        } else {
            nodes_.push_back(node);
        }
        at += length;
    }
    if (found != count)
        facts_.complain(36,
                        [&] { return fmt::format("the table says {} nodes, {} are there", count, found); });
}

void ViotReader::add_unit(const Node& node) {
    UnitFact unit;
    unit.kind = UnitKind::virtio_iommu;
    unit.origin = facts_.origin(node.offset);
    if (node.type == pci_unit) {
        unit.segment = table_.get<std::uint16_t>(node.offset + 4);
        unit.function = PciAddress{unit.segment, table_.get<std::uint16_t>(node.offset + 6)};
        unit.name = unit_name(unit.kind, *unit.function);
    } else {
        unit.registers = table_.get<std::uint64_t>(node.offset + 8);
        if (*unit.registers == 0)
            return facts_.complain(node.offset + 8, "a virtio-iommu with registers at 0: it is not used");
        unit.name = unit_name(unit.kind, *unit.registers);
    }
    const std::uint64_t place =
        unit.registers.value_or(std::uint64_t{unit.segment} << 16 | unit.function.value_or(PciAddress{}).rid);
    auto& known = node.type == pci_unit ? at_function_ : at_registers_;
    const auto [at, is_first] =
        known.emplace(place, static_cast<std::uint16_t>(facts_.so_far().units.size()));
    units_.push_back({node.offset, at->second});
    if (!is_first)
        return facts_.complain(
            node.offset, [&] { return fmt::format("two nodes are {}: they are taken as one", unit.name); });
    if (!facts_.add(std::move(unit))) units_.pop_back();
}

const UnitAt* ViotReader::find_unit(const Node& node) {
    const std::uint16_t offset = table_.get<std::uint16_t>(node.offset + 16);
    const auto at = std::ranges::lower_bound(units_, offset, {}, &UnitAt::offset);
    if (at != units_.end() && at->offset == offset) return &*at;
    facts_.complain(node.offset + 16, [&] {
        return fmt::format("devices are said to be behind {:#x}, where no usable virtio-iommu is", offset);
    });
    return nullptr;
}

/// Notes the unit and the last segment of a range that can be used.
void ViotReader::check_range(Node& node) {
    const std::size_t at = node.offset;
    const std::uint32_t first_segment = table_.get<std::uint16_t>(at + 8);
    std::uint32_t last_segment = table_.get<std::uint16_t>(at + 10);
    const std::uint16_t first = table_.get<std::uint16_t>(at + 12);
    const std::uint16_t last = table_.get<std::uint16_t>(at + 14);
    if (first > last || first_segment > last_segment)
        return facts_.complain(at, [&] {
            return fmt::format("a range of functions {}-{} is none",
                               to_string(PciAddress{static_cast<std::uint16_t>(first_segment), first}),
                               to_string(PciAddress{static_cast<std::uint16_t>(last_segment), last}));
        });
    const UnitAt* const unit = find_unit(node);
    if (unit == nullptr) return;
    if (last_segment - first_segment >= max_viot_segments) {
        facts_.complain(at + 8, [&] {
            return fmt::format("a range of {} segments; the first {} are read",
                               last_segment - first_segment + 1, max_viot_segments);
        });
        last_segment = first_segment + max_viot_segments - 1;
    }
    if (last_segment - first_segment > more_segments_) {
        facts_.complain(at + 8, "a range of several segments behind too many others: its first is read");
        last_segment = first_segment;
    }
    more_segments_ -= last_segment - first_segment;
    node.unit = unit->index;
    node.last_segment = static_cast<std::uint16_t>(last_segment);
}

/// Finds where ranges overlap, so that only those there have to be looked at again; and makes room for the others.
void ViotReader::find_contested() {
    std::vector<std::uint64_t> ranges;  // first << 32 | last
    ranges.reserve(nodes_.size() + max_viot_more_segments);
    std::size_t count_endpoints = 0;
    for (const Node& node : nodes_) {
        count_endpoints += node.type == mmio_endpoint;
        if (node.type != pci_range || node.unit == no_unit) continue;
        const auto first = table_.get<std::uint16_t>(node.offset + 12);
        const auto last = table_.get<std::uint16_t>(node.offset + 14);
        for (std::uint32_t at = table_.get<std::uint16_t>(node.offset + 8); at <= node.last_segment; ++at)
            ranges.push_back(std::uint64_t{place_of(at, first)} << 32 | place_of(at, last));
    }
    if (!std::ranges::is_sorted(ranges)) std::ranges::sort(ranges);
    std::size_t count_alone = 0;
    for (std::size_t i = 0; i < ranges.size();) {
        const std::size_t begin = i;
        Piece all{static_cast<std::uint32_t>(ranges[i] >> 32), static_cast<std::uint32_t>(ranges[i])};
        for (++i; i < ranges.size() && ranges[i] >> 32 <= all.last; ++i)
            all.last = std::max(all.last, static_cast<std::uint32_t>(ranges[i]));
        if (i - begin == 1)
            ++count_alone;
        else
            contested_.push_back(all);
    }
    facts_.expect_covers(count_alone + count_endpoints);
}

void ViotReader::add_range(const Node& node) {
    const std::size_t at = node.offset;
    const std::uint32_t endpoint = table_.get<std::uint32_t>(at + 4);
    const std::uint32_t first_segment = table_.get<std::uint16_t>(at + 8);
    const std::uint16_t first = table_.get<std::uint16_t>(at + 12);
    const std::uint16_t last = table_.get<std::uint16_t>(at + 14);
    const UnitFact& unit = facts_.so_far().units[node.unit];
    CoverFact cover;
    cover.unit = unit.name;
    cover.origin = facts_.origin(at);
    for (std::uint32_t segment = first_segment; segment <= node.last_segment; ++segment) {
        // The endpoint is a number of 32 bits, which goes round at its end.
        cover.identity.first_id = endpoint + ((segment - first_segment) << 16);
        if (!add_segment(cover, unit.function, at, {static_cast<std::uint16_t>(segment), first, last}))
            return;
    }
}

bool ViotReader::add_segment(CoverFact& cover, std::optional<PciAddress> self, std::size_t offset,
                             PciRange functions) {
    const std::uint32_t first = place_of(functions.segment, functions.first_rid);
    const auto contested = std::ranges::lower_bound(contested_, first, {}, &Piece::last);
    if (contested != contested_.end() && contested->first <= first)
        return add_contested(cover, self, offset, functions);
    cover.which = functions;
    return add_range_cover(facts_, cover, self);
}

bool ViotReader::add_contested(const CoverFact& cover, std::optional<PciAddress> self, std::size_t offset,
                               PciRange functions) {
    if (contested_left_ == 0) {
        facts_.complain(offset, "a range that overlaps, behind too many others that do: it is not used");
        return true;
    }
    --contested_left_;
    const std::vector<Piece> pieces = claims_.claim(
        {place_of(functions.segment, functions.first_rid), place_of(functions.segment, functions.last_rid)});
    std::uint32_t count = 0;
    for (const Piece& piece : pieces) count += piece.last - piece.first + 1;
    if (count != functions.last_rid - functions.first_rid + 1U)
        facts_.complain(offset, [&] {
            return fmt::format("the range {} overlaps one before it, which counts",
                               to_string(Selector{functions}));
        });
    for (const Piece& piece : pieces) {
        CoverFact part = cover;
        const auto first = static_cast<std::uint16_t>(piece.first);
        part.which = PciRange{functions.segment, first, static_cast<std::uint16_t>(piece.last)};
        part.identity.first_id = *cover.identity.first_id + (first - functions.first_rid);
        if (!add_range_cover(facts_, part, self)) return false;
    }
    return true;
}

void ViotReader::add_endpoint(const Node& node) {
    const UnitAt* const unit = find_unit(node);
    if (unit == nullptr) return;
    IdentityRule identity;
    identity.first_id = table_.get<std::uint32_t>(node.offset + 4);
    identity.is_shared = true;
    // A false answer is is_full(), which read() asks.
    static_cast<void>(facts_.add_cover(facts_.so_far().units[unit->index].name,
                                       MmioDevice{.registers = table_.get<std::uint64_t>(node.offset + 8)},
                                       identity, node.offset));
}

}  // namespace

Result<SourceFacts> read_viot(std::span<const std::byte> table) {
    TableFacts facts{Source::viot, table.size()};
    const TableBytes bytes = GM_TRY(open_acpi_table(table, "VIOT", header_bytes, facts));
    ViotReader reader{bytes, facts};
    GM_TRY(reader.read());
    return std::move(facts).finish();
}

}  // namespace guestmem::dma
