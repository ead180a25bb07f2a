// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/iort.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bitset>
#include <limits>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "guestmem/dma/discover/acpi_table.hpp"
#include "guestmem/dma/discover/cover_pieces.hpp"
#include "guestmem/dma/discover/iort_map.hpp"

namespace guestmem::dma {
namespace {

// Arm DEN0049, "IO Remapping Table": node types, and where their fields are.
enum NodeType : std::uint8_t {
    its_group = 0,
    named_component = 1,
    root_complex = 2,
    smmu_v1_v2 = 3,
    smmu_v3 = 4,
    performance_counters = 5,
    reserved_memory = 6,
};
constexpr std::size_t count_types = 7;
constexpr std::array<std::size_t, count_types> least_bytes{20, 30, 32, 36, 28, 28, 28};
constexpr std::size_t header_bytes = 48;
constexpr std::size_t node_header_bytes = 16;
constexpr std::size_t component_path_at = 29;
constexpr std::size_t segment_at = 28;
constexpr std::size_t device_id_index_at = 64;
constexpr std::uint32_t has_device_id_index = 16;
constexpr std::uint32_t remap_is_permitted = 1;
constexpr std::size_t descriptor_bytes = 20;
constexpr std::size_t max_unordered_mappings = 4096;

constexpr std::uint32_t none = std::numeric_limits<std::uint32_t>::max();

struct Node {
    std::uint32_t offset = 0;
    std::uint16_t length = 0;
    std::uint8_t type = 0;
    std::uint32_t extra = none;  ///< of an SMMU its unit; of others their compiled pieces
};

/// What requests of one cover carry at a unit.
struct Stream {
    std::uint32_t unit = 0;
    std::uint32_t first = 0;
    std::uint32_t last = 0;
    std::uint32_t cover = 0;
    std::uint32_t most_before = 0;  ///< the largest `last` of the unit's streams up to this one

    [[nodiscard]] std::uint64_t order() const { return std::uint64_t{unit} << 32 | first; }
};

class IortReader {
public:
    IortReader(const TableBytes& table, TableFacts& facts)
        : table_(table), facts_(facts), steps_(4096 + table.size_bytes() / 64) {}

    void read() {
        find_nodes();
        add_units();
        steps_ += count_mappings_;
        expect_covers();
        for (std::size_t i = 0; i < nodes_.size() && !facts_.is_full(); ++i) {
            if (nodes_[i].type == root_complex) read_root_complex(i);
            if (nodes_[i].type == named_component) read_component(i);
        }
        sort_streams();
        for (std::size_t i = 0; i < nodes_.size() && !facts_.is_full(); ++i)
            if (nodes_[i].type == reserved_memory) read_reserved_memory(nodes_[i]);
    }

private:
    /// Where ids come out: first to last at the node, or all as first.
    struct Way {
        Piece from = {};  ///< the ids that the device has
        std::uint32_t id = 0;
        bool is_shared = false;
        std::uint32_t node = 0;  ///< offset
        std::size_t depth = 0;
    };

    [[nodiscard]] TableBytes bytes_of(const Node& node) const {
        return table_.part(node.offset, node.length);
    }
    [[nodiscard]] const Node* node_at(std::uint32_t offset) const;

    void find_nodes();
    void check_node(const Node& node);
    void add_units();
    void expect_covers();
    std::vector<IortMapping> mappings_of(const Node& node);
    const std::vector<IortPiece>& pieces_of(std::size_t index);

    void read_root_complex(std::size_t index);
    void read_component(std::size_t index);
    template <typename F>
    void follow(const Way& way, std::size_t offset, const F& arrive);
    void add_range(CoverFact& cover, std::uint16_t segment, const Way& end, const Node& node);
    void add_stream(const CoverFact& cover, std::uint32_t unit, std::uint32_t first, std::uint32_t last);

    void sort_streams();
    void read_reserved_memory(const Node& node);
    std::optional<std::vector<Selector>> devices_of(const Node& node);
    bool add_devices(std::vector<Selector>& who, std::uint32_t unit, Piece ids);

    TableBytes table_;
    TableFacts& facts_;
    std::size_t steps_;
    std::size_t unordered_mappings_ = max_unordered_mappings;
    std::size_t count_mappings_ = 0;
    bool has_reserved_memory_ = false;
    mutable std::size_t last_found_ = 0;          // in nodes_: mappings side by side lead to one
    std::vector<Node> nodes_;                     // by offset
    std::vector<std::vector<IortPiece>> pieces_;  // of the nodes that have been asked for them
    std::vector<Stream> streams_;                 // by unit and first id
    std::bitset<65536> segments_;                 // that had a root complex
};

const Node* IortReader::node_at(std::uint32_t offset) const {
    if (last_found_ < nodes_.size() && nodes_[last_found_].offset == offset) return &nodes_[last_found_];
    const auto at = std::ranges::lower_bound(nodes_, offset, {}, &Node::offset);
    if (at != nodes_.end()) last_found_ = static_cast<std::size_t>(at - nodes_.begin());
    return at != nodes_.end() && at->offset == offset ? &*at : nullptr;
}

void IortReader::find_nodes() {
    const std::uint32_t count = table_.get<std::uint32_t>(36);
    std::size_t at = table_.get<std::uint32_t>(40);
    if (at < header_bytes)
        return facts_.complain(40,
                               [&] { return fmt::format("the first node at {:#x} lies in the header", at); });
    std::uint32_t found = 0;
    for (; found < count && table_.has(at, node_header_bytes); ++found) {
        const std::uint16_t length = table_.get<std::uint16_t>(at + 1);
        if (length < node_header_bytes || !table_.has(at, length)) {
            return facts_.complain(at, [&] {
                return fmt::format("a node of {} bytes, {} are left: it and what follows are not read",
                                   length, table_.size_bytes() - at);
            });
        }
        const Node node{static_cast<std::uint32_t>(at), length, table_.get<std::uint8_t>(at)};
        check_node(node);
        at += length;
    }
    if (found != count)
        facts_.complain(36,
                        [&] { return fmt::format("the table says {} nodes, {} are there", count, found); });
}

void IortReader::check_node(const Node& node) {
    if (node.type >= count_types)
        return facts_.complain(
            node.offset, [&] { return fmt::format("a node of unknown type {} is passed over", node.type); });
    if (node.length < least_bytes[node.type])
        return facts_.complain(node.offset, [&] {
            return fmt::format("a node of type {} with {} bytes, it has at least {}: it is passed over",
                               node.type, node.length, least_bytes[node.type]);
        });
    const TableBytes bytes = bytes_of(node);
    const auto count = bytes.get<std::uint32_t>(8);
    if (node.type == root_complex || node.type == named_component)
        count_mappings_ += std::min<std::size_t>(count, node.length / iort_mapping_bytes);
    if (node.type == smmu_v3 && (bytes.get<std::uint32_t>(24) & has_device_id_index) != 0 &&
        bytes.get<std::uint32_t>(device_id_index_at) >= count)
        facts_.complain(node.offset + device_id_index_at, [&] {
            return fmt::format("the SMMU's own interrupts have mapping {}, it has {} mappings",
                               bytes.get<std::uint32_t>(device_id_index_at), count);
        });
    nodes_.push_back(node);
}

void IortReader::add_units() {
    std::unordered_map<std::uint64_t, std::uint32_t> at_base;
    for (Node& node : nodes_) {
        if (node.type != smmu_v1_v2 && node.type != smmu_v3) continue;
        const TableBytes bytes = bytes_of(node);
        const auto base = bytes.get<std::uint64_t>(16);
        if (base == 0) {
            facts_.complain(node.offset + 16, "an SMMU with registers at 0: it is not used");
            continue;
        }
        const auto [known, is_first] =
            at_base.emplace(base, static_cast<std::uint32_t>(facts_.so_far().units.size()));
        node.extra = known->second;
        if (!is_first) {
            facts_.complain(node.offset + 16, [&] {
                return fmt::format("two SMMUs with registers at {:#x}: they are taken as one", base);
            });
            continue;
        }
        const bool is_v3 = node.type == smmu_v3;
        UnitFact unit;
        unit.kind = is_v3 ? UnitKind::smmu_v3 : UnitKind::smmu_v2;
        unit.name = unit_name(unit.kind, base);
        unit.registers = base;
        unit.registers_bytes = is_v3 ? 0 : bytes.get<std::uint64_t>(24);
        unit.origin = facts_.origin(node.offset);
        if (!facts_.add(std::move(unit))) return;
    }
}

/// Each mapping of a root complex that leads to a unit is a cover: a table with too many is refused before the first.
void IortReader::expect_covers() {
    std::size_t count = 0;
    for (const Node& node : nodes_) {
        has_reserved_memory_ = has_reserved_memory_ || node.type == reserved_memory;
        if (node.type != root_complex) continue;
        const TableBytes bytes = bytes_of(node);
        const std::size_t at = bytes.get<std::uint32_t>(12);
        if (at < node_header_bytes || !bytes.has(at, 0)) continue;
        const std::size_t room = (node.length - at) / iort_mapping_bytes;
        const std::size_t count_here = std::min<std::size_t>(bytes.get<std::uint32_t>(8), room);
        for (std::size_t i = 0; i < count_here; ++i) {
            const IortMapping mapping = read_iort_mapping(bytes, at + i * iort_mapping_bytes);
            const bool is_used = mapping.is_single || mapping.input_base <= 0xffff;
            const Node* const target = is_used ? node_at(mapping.output_node) : nullptr;
            count += target != nullptr && (target->type == its_group || target->extra != none);
        }
    }
    facts_.expect_covers(count);
}

std::vector<IortMapping> IortReader::mappings_of(const Node& node) {
    const TableBytes bytes = bytes_of(node);
    std::size_t count = bytes.get<std::uint32_t>(8);
    const std::size_t at = bytes.get<std::uint32_t>(12);
    std::vector<IortMapping> mappings;
    if (count == 0) return mappings;
    if (at < node_header_bytes || !bytes.has(at, 0)) {
        facts_.complain(node.offset + 12, [&] {
            return fmt::format("its ID mappings at {:#x} are not in the node of {} bytes", at, node.length);
        });
        return mappings;
    }
    const std::size_t room = (node.length - at) / iort_mapping_bytes;
    if (count > room) {
        facts_.complain(node.offset + 8, [&] {
            return fmt::format("{} ID mappings, there is room for {} in the node: those are read", count,
                               room);
        });
        count = room;
    }
    mappings.reserve(count);
    for (std::size_t i = 0; i < count; ++i)
        mappings.push_back(read_iort_mapping(bytes, at + i * iort_mapping_bytes));
    return mappings;
}

const std::vector<IortPiece>& IortReader::pieces_of(std::size_t index) {
    Node& node = nodes_[index];
    if (node.extra == none) {
        node.extra = static_cast<std::uint32_t>(pieces_.size());
        pieces_.push_back(
            iort_pieces(mappings_of(node), SingleMapping::is_allowed, unordered_mappings_, facts_));
    }
    return pieces_[node.extra];
}

/// Goes on from a node until the ids come to an SMMU or an ITS, in as many parts as the mappings cut them.
template <typename F>
void IortReader::follow(const Way& way, std::size_t offset, const F& arrive) {
    if (facts_.is_full() || steps_ == 0) return;
    if (--steps_ == 0)
        return facts_.complain(offset, "the mappings fork too often: what follows is not read");
    const Node* const node = node_at(way.node);
    if (node == nullptr)
        return facts_.complain(offset, [&] {
            return fmt::format("this ID mapping leads to {:#x}, where no node begins", way.node);
        });
    if (node->type == its_group || node->type == smmu_v1_v2 || node->type == smmu_v3)
        return arrive(way, *node);
    if (node->type != root_complex && node->type != named_component)
        return facts_.complain(offset, [&] {
            return fmt::format("this ID mapping leads to {:#x}, a node of type {}, which takes no ids",
                               way.node, node->type);
        });
    if (way.depth == max_iort_depth)
        return facts_.complain(offset, "this ID mapping leads round in a loop, or through too many nodes");
    const std::size_t index = static_cast<std::size_t>(node - nodes_.data());
    const std::uint32_t last = way.is_shared ? way.id : way.id + (way.from.last - way.from.first);
    const std::size_t count = pieces_of(index).size();
    const auto& before = pieces_of(index);
    std::size_t at = static_cast<std::size_t>(std::ranges::lower_bound(before, way.id, {}, &IortPiece::last) -
                                              before.begin());
    for (; at < count && steps_ > 0; ++at) {
        const IortPiece piece = pieces_of(index)[at];  // a copy: what follows may compile more nodes
        if (piece.first > last) break;
        const std::uint32_t first = std::max(piece.first, way.id);
        Way next;
        next.from = way.is_shared ? way.from
                                  : Piece{way.from.first + (first - way.id),
                                          way.from.first + (std::min(piece.last, last) - way.id)};
        next.id = piece.is_shared ? piece.output_base : piece.output_base + (first - piece.first);
        next.is_shared = way.is_shared || piece.is_shared;
        next.node = piece.output_node;
        next.depth = way.depth + 1;
        follow(next, offset, arrive);
    }
}

void IortReader::add_stream(const CoverFact& cover, std::uint32_t unit, std::uint32_t first,
                            std::uint32_t last) {
    const auto index = static_cast<std::uint32_t>(facts_.so_far().covers.size());
    if (facts_.add(cover) && unit != none && has_reserved_memory_)
        streams_.push_back({unit, first, last, index});
}

void IortReader::add_range(CoverFact& cover, std::uint16_t segment, const Way& end, const Node& node) {
    const bool is_its = node.type == its_group;
    if (!is_its && node.extra == none)
        return facts_.complain(node.offset, "devices are mapped to this SMMU, which is not used");
    cover.which = PciRange{segment, static_cast<std::uint16_t>(end.from.first),
                           static_cast<std::uint16_t>(end.from.last)};
    cover.unit = is_its ? std::string{} : facts_.so_far().units[node.extra].name;
    cover.identity = {};
    if (!is_its) {
        cover.identity.first_id = end.id;
        cover.identity.is_shared = end.is_shared;
    }
    const std::uint32_t last = end.is_shared ? end.id : end.id + (end.from.last - end.from.first);
    add_stream(cover, is_its ? none : node.extra, end.id, std::max(end.id, last));
}

void IortReader::read_root_complex(std::size_t index) {
    const Node node = nodes_[index];
    const auto number = bytes_of(node).get<std::uint32_t>(segment_at);
    if (number > 0xffff || segments_[number]) {
        return facts_.complain(node.offset + segment_at, [&] {
            return fmt::format("a root complex of segment {:#x}{}: it is not used", number,
                               number > 0xffff ? "" : ", which has one already");
        });
    }
    segments_.set(number);
    CoverFact cover;
    const std::size_t count = pieces_of(index).size();
    for (std::size_t at = 0; at < count && !facts_.is_full() && steps_ > 0; ++at) {
        const IortPiece piece = pieces_of(index)[at];
        constexpr std::uint32_t last_rid = 0xffff;
        if (piece.first > last_rid) {
            facts_.complain(piece.offset,
                            [&] { return fmt::format("{:#x} is no requester id of PCI", piece.first); });
            break;
        }
        cover.origin = facts_.origin(piece.offset);
        const Way way{.from = {piece.first, std::min(piece.last, last_rid)},
                      .id = piece.output_base,
                      .is_shared = piece.is_shared,
                      .node = piece.output_node};
        follow(way, piece.offset, [&](const Way& end, const Node& unit) {
            add_range(cover, static_cast<std::uint16_t>(number), end, unit);
        });
    }
}

void IortReader::read_component(std::size_t index) {
    const Node node = nodes_[index];
    const TableBytes bytes = bytes_of(node);
    const std::vector<IortMapping> mappings = mappings_of(node);
    if (mappings.empty()) return;
    const TableBytes text = bytes.part(component_path_at);
    std::string path = acpi_path(text).value_or(std::string{});
    if (path.empty()) {
        path = printable(text.part(0, max_acpi_path_bytes).bytes());
        facts_.complain(node.offset + component_path_at,
                        [&] { return fmt::format("'{}' is no path of the ACPI namespace", path); });
        if (path.empty()) path = fmt::format("component at {:#x}", node.offset);
    }
    CoverFact cover;
    cover.which = NamedDevice{path};
    bool is_behind_unit = false;
    bool is_at_its = false;
    for (const IortMapping& mapping : mappings) {
        if (facts_.is_full() || steps_ == 0) return;
        if (mapping.output_node == 0 || (!mapping.is_single && mapping.is_past_the_end())) {
            facts_.complain(mapping.offset,
                            "this ID mapping leads to no node or past 32 bits: it is not used");
            continue;
        }
        cover.origin = facts_.origin(mapping.offset);
        const std::uint32_t count = mapping.is_single ? 0 : mapping.count_minus_1;
        const Way way{.from = {0, std::min(count, none - mapping.output_base)},
                      .id = mapping.output_base,
                      .node = mapping.output_node};
        follow(way, mapping.offset, [&](const Way& end, const Node& unit) {
            is_at_its = is_at_its || unit.type == its_group;
            if (unit.type == its_group) return;
            if (unit.extra == none)
                return facts_.complain(unit.offset, "a device is mapped to this SMMU, which is not used");
            is_behind_unit = true;
            cover.unit = facts_.so_far().units[unit.extra].name;
            cover.identity.is_shared = true;
            const std::uint32_t last = end.is_shared ? end.id : end.id + (end.from.last - end.from.first);
            for (const IdBlock& block : id_blocks(end.id, last)) {
                cover.identity.first_id = block.first;
                cover.identity.ignored_bits = block.ignored_bits;
                add_stream(cover, unit.extra, block.first, block.first | block.ignored_bits);
            }
        });
    }
    if (is_at_its && !is_behind_unit) {
        cover.unit.clear();
        cover.identity = {};
        add_stream(cover, none, 0, 0);
    }
}

void IortReader::sort_streams() {
    std::ranges::sort(streams_, {}, [](const Stream& one) { return std::pair{one.order(), one.cover}; });
    for (std::size_t i = 0; i < streams_.size(); ++i) {
        const bool is_first = i == 0 || streams_[i - 1].unit != streams_[i].unit;
        streams_[i].most_before =
            is_first ? streams_[i].last : std::max(streams_[i].last, streams_[i - 1].most_before);
    }
}

/// False when there are too many of them, or they are too hard to find.
bool IortReader::add_devices(std::vector<Selector>& who, std::uint32_t unit, Piece ids) {
    const std::uint64_t behind = (std::uint64_t{unit} << 32) + ids.last;
    auto at = std::ranges::upper_bound(streams_, behind, {}, &Stream::order);
    while (at != streams_.begin() && (--at)->unit == unit && at->most_before >= ids.first) {
        if (steps_ == 0 || who.size() == max_rmr_devices) return false;
        --steps_;
        if (at->last < ids.first) continue;
        const CoverFact& cover = facts_.so_far().covers[at->cover];
        Selector selector = cover.which;
        if (auto* const range = std::get_if<PciRange>(&selector);
            range != nullptr && !cover.identity.is_shared) {
            const std::uint32_t base = range->first_rid;
            const std::uint32_t first = std::max(ids.first, at->first) - at->first;
            const std::uint32_t last = std::min(ids.last, at->last) - at->first;
            range->first_rid = static_cast<std::uint16_t>(base + first);
            range->last_rid = static_cast<std::uint16_t>(base + last);
        }
        who.push_back(std::move(selector));
    }
    return true;
}

/// Empty when there are too many to tell: all are meant then. Nothing when it is said of no SMMU.
std::optional<std::vector<Selector>> IortReader::devices_of(const Node& node) {
    std::vector<Selector> who;
    for (const IortMapping& mapping : mappings_of(node)) {
        const Node* const unit = node_at(mapping.output_node);
        if (unit == nullptr || (unit->type != smmu_v1_v2 && unit->type != smmu_v3) || unit->extra == none) {
            facts_.complain(mapping.offset, [&] {
                return fmt::format("this mapping of reserved memory leads to {:#x}, where no SMMU is",
                                   mapping.output_node);
            });
            continue;
        }
        const Piece ids{mapping.output_base,
                        mapping.output_base + std::min(mapping.count_minus_1, none - mapping.output_base)};
        const std::size_t before = who.size();
        if (!add_devices(who, unit->extra, ids)) {
            facts_.complain(node.offset,
                            "too many devices need this reserved memory: it is taken as that of all");
            return std::vector<Selector>{};
        }
        std::ranges::reverse(who.begin() + static_cast<std::ptrdiff_t>(before), who.end());
        if (who.size() > before) continue;
        const std::string& name = facts_.so_far().units[unit->extra].name;
        facts_.complain(mapping.offset, [&] {
            return fmt::format("no device has the stream ids {:#x}-{:#x} of {}, which need reserved memory",
                               ids.first, ids.last, name);
        });
        who.emplace_back(NamedDevice{fmt::format("stream ids {:#x}-{:#x} of {}", ids.first, ids.last, name)});
    }
    return who.empty() ? std::nullopt : std::optional{std::move(who)};
}

void IortReader::read_reserved_memory(const Node& node) {
    const TableBytes bytes = bytes_of(node);
    const auto flags = bytes.get<std::uint32_t>(16);
    std::size_t count = bytes.get<std::uint32_t>(20);
    const std::size_t at = bytes.get<std::uint32_t>(24);
    if (at < node_header_bytes || !bytes.has(at, 0) || count > (node.length - at) / descriptor_bytes) {
        facts_.complain(node.offset + 20, [&] {
            return fmt::format("{} ranges of reserved memory at {:#x} are not in the node of {} bytes", count,
                               at, node.length);
        });
        count = bytes.has(at, 0) && at >= node_header_bytes ? (node.length - at) / descriptor_bytes : 0;
    }
    if (count == 0) return;
    if (bytes.get<std::uint32_t>(8) == 0)
        return facts_.complain(node.offset + 8, "reserved memory without ID mappings: it is no device's");
    const auto who = devices_of(node);
    if (!who) return;
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t where = at + i * descriptor_bytes;
        const auto base = bytes.get<std::uint64_t>(where);
        const auto size = bytes.get<std::uint64_t>(where + 8);
        if (size == 0 || size - 1 > std::numeric_limits<std::uint64_t>::max() - base) {
            facts_.complain(node.offset + where, [&] {
                return fmt::format("reserved memory of {:#x} bytes at {:#x} is no range", size, base);
            });
            continue;
        }
        ReservedFact fact;
        fact.who = *who;
        fact.first = base;
        fact.last = base + (size - 1);
        fact.kind = (flags & remap_is_permitted) != 0 ? ReservedKind::direct_relaxable : ReservedKind::direct;
        fact.origin = facts_.origin(node.offset + where);
        if (!facts_.add(std::move(fact))) return;
    }
}

}  // namespace

Result<SourceFacts> read_iort(std::span<const std::byte> table) {
    TableFacts facts{Source::iort, table.size()};
    const TableBytes bytes = GM_TRY(open_acpi_table(table, "IORT", header_bytes, facts));
    IortReader{bytes, facts}.read();
    return std::move(facts).finish();
}

}  // namespace guestmem::dma
