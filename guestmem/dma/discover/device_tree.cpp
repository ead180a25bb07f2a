// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/device_tree.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "guestmem/dma/discover/acpi_table.hpp"
#include "guestmem/dma/discover/cover_pieces.hpp"
#include "guestmem/dma/discover/device_tree_walk.hpp"

namespace guestmem::dma {
namespace {

/// One more would be a wrong number: bindings have up to 4.
constexpr std::uint32_t max_iommu_cells = 16;
constexpr std::uint8_t no_cells = 0xff;
constexpr std::uint32_t no_unit = std::numeric_limits<std::uint32_t>::max();
constexpr std::size_t map_row_cells = 4;

/// What of a name may go to a terminal. The walk's paths are not longer; names can be.
std::string quoted(std::string_view name) {
    std::string text{name.substr(0, max_tree_path_bytes)};
    std::ranges::replace_if(text, [](char c) { return c < ' ' || c > '~'; }, '?');
    return text;
}

UnitKind kind_of(const TreeNode& node) {
    for (const std::string_view name : texts_of(node.get(TreeProperty::compatible))) {
        const auto ends = [&](std::string_view end) { return name.ends_with(end); };
        if (ends(",smmu-v3")) return UnitKind::smmu_v3;
        if (ends(",smmu-v1") || ends(",smmu-v2") || ends("smmu-500") || ends(",mmu-400") ||
            ends(",mmu-401") || ends(",mmu-500") || ends("adreno-smmu"))
            return UnitKind::smmu_v2;
        if (name == "virtio,pci-iommu" || name == "pci1af4,1057" || name == "virtio,mmio")
            return UnitKind::virtio_iommu;
    }
    return UnitKind::other;
}

/// SMMUs that are described by the old binding have no `#iommu-cells`.
bool is_unit(const TreeNode& node) {
    if (node.has(TreeProperty::iommu_cells)) return true;
    if (!node.has(TreeProperty::compatible)) return false;
    const UnitKind kind = kind_of(node);
    return kind == UnitKind::smmu_v2 || kind == UnitKind::smmu_v3;
}

/// A node that others refer to.
struct Target {
    std::uint32_t phandle = 0;
    std::uint32_t offset = 0;
    std::uint32_t unit = no_unit;  ///< in SourceFacts::units
    std::uint32_t ignored_bits = 0;
    std::uint8_t iommu_cells = no_cells;
    std::uint8_t parent_address_cells = 0;
    std::uint8_t parent_size_cells = 0;
    bool is_available = true;
};

/// A property iommu-addresses of reserved-memory.
struct Region {
    std::string_view name;
    std::uint32_t offset = 0;
    Cells addresses = {};
    std::uint64_t memory_base = 0;
    std::uint64_t memory_bytes = 0;  ///< 0: it has no memory of its own
};

/// What a device needs of reserved-memory.
struct Need {
    std::uint32_t phandle = 0;
    std::uint32_t region = 0;
    std::uint64_t first = 0;
    std::uint64_t last = 0;
    ReservedKind kind = ReservedKind::direct;
};

class TreeReader {
public:
    TreeReader(const DeviceTree& tree, TableFacts& facts)
        : tree_(tree), facts_(facts), steps_(16384 + tree.size_bytes() / 16) {}

    void read() {
        collect();
        settle();
        emit();
    }

private:
    /// Numbers the PCI host bridges as both walks meet them.
    class Segments {
    public:
        explicit Segments(TableFacts* facts) : facts_(facts) {}
        void visit(const TreeWalk& walk);
        [[nodiscard]] std::uint16_t current() const { return current_; }

    private:
        TableFacts* facts_;  // who complains; the second walk does not
        std::uint32_t count_unnumbered_ = 0;
        bool has_numbered_ = false;
        std::uint16_t current_ = 0;
    };

    template <typename F>
    void complain(const TreeWalk& walk, F&& make_text) {
        facts_.complain(walk.node().offset, [&] {
            return fmt::format("{}: {}", quoted(walk.path().empty() ? walk.node().name : walk.path()),
                               std::forward<F>(make_text)());
        });
    }
    [[nodiscard]] Origin origin_at(const TreeWalk& walk) const {
        return {.source = Source::device_tree, .place = quoted(walk.path())};
    }

    void collect();
    void collect_unit(const TreeWalk& walk, std::uint16_t segment, Target& target);
    void collect_region(const TreeWalk& walk);
    void settle();
    void settle_region(std::size_t number);
    void emit();
    void emit_needs(const TreeWalk& walk);
    void emit_streams(const TreeWalk& walk);
    void emit_map(const TreeWalk& walk, std::uint16_t segment);
    [[nodiscard]] bool has_ordered_rows(Cells map) const;
    bool emit_row(const TreeWalk& walk, CoverFact& cover, const Target& target, Piece rids);
    bool emit_ids(const CoverFact& row, std::uint32_t count_behind_first);
    [[nodiscard]] const Target* find(std::uint32_t phandle) const;
    const Target* find_unit(const TreeWalk& walk, std::uint32_t phandle, std::string_view property);

    const DeviceTree& tree_;
    TableFacts& facts_;
    std::size_t steps_;
    std::size_t unordered_rows_ = max_unordered_rows;
    std::unordered_map<std::string, std::uint32_t> unit_names_;
    std::vector<Target> targets_;  // by phandle after settle()
    std::vector<Region> regions_;
    std::vector<Need> needs_;  // by phandle after settle()
};

void TreeReader::Segments::visit(const TreeWalk& walk) {
    const TreeNode& node = walk.node();
    if (!node.is_pci || walk.parent().is_pci || !node.is_available || walk.depth() == 0) return;
    const auto number = node.get_cell(TreeProperty::pci_domain);
    if (number && *number <= 0xffff) {
        current_ = static_cast<std::uint16_t>(*number);
    } else {
        current_ = static_cast<std::uint16_t>(count_unnumbered_++);
    }
    const bool is_odd = number ? *number > 0xffff || count_unnumbered_ > 0 : has_numbered_;
    if (facts_ != nullptr && is_odd)
        facts_->complain(node.offset, [&] {
            return fmt::format(
                "{}: some PCI host bridges have a linux,pci-domain that can be, others do not: its segment may not "
                "be {:#x}",
                quoted(walk.path()), current_);
        });
    has_numbered_ = has_numbered_ || (number && *number <= 0xffff);
}

void TreeReader::collect() {
    Segments segments{&facts_};
    TreeWalk walk{tree_};
    while (!facts_.is_full() && walk.next()) {
        const TreeNode& node = walk.node();
        segments.visit(walk);
        Target target;
        target.phandle = node.phandle();
        target.offset = static_cast<std::uint32_t>(node.offset);
        target.is_available = node.is_available;
        // More cells than four are no address; what is read with five fails as well.
        target.parent_address_cells =
            static_cast<std::uint8_t>(std::min<std::size_t>(walk.parent().address_cells, 5));
        target.parent_size_cells =
            static_cast<std::uint8_t>(std::min<std::size_t>(walk.parent().size_cells, 5));
        if (is_unit(node)) collect_unit(walk, segments.current(), target);
        if (target.phandle != 0) targets_.push_back(target);
        if (node.has(TreeProperty::iommu_addresses)) collect_region(walk);
    }
    if (walk.count_too_deep() > 0)
        facts_.complain(0, [&] {
            return fmt::format("{} nodes are deeper than {} and are not read, as in the kernel",
                               walk.count_too_deep(), max_tree_depth);
        });
}

void TreeReader::collect_unit(const TreeWalk& walk, std::uint16_t segment, Target& target) {
    const TreeNode& node = walk.node();
    const std::uint32_t cells = node.get_cell(TreeProperty::iommu_cells).value_or(no_cells);
    target.iommu_cells = static_cast<std::uint8_t>(std::min<std::uint32_t>(cells, no_cells));
    if (!node.is_available) return;
    if (walk.path().empty())
        return complain(walk, [] { return "its path is too long: this IOMMU is not read"; });
    UnitFact unit;
    unit.kind = kind_of(node);
    unit.origin = origin_at(walk);
    if (node.has(TreeProperty::mmu_masters))
        complain(walk, [] { return "devices that mmu-masters lists (the old binding) are not read"; });
    if (unit.kind == UnitKind::smmu_v2)
        target.ignored_bits = node.get_cell(TreeProperty::stream_match_mask).value_or(0);
    const Cells reg = node.get(TreeProperty::reg);
    if (walk.parent().is_pci && reg.count() > 0) {
        // PCI Bus Binding to Open Firmware: bus 23:16, device 15:11, function 10:8 of the first cell.
        unit.function = PciAddress{segment, static_cast<std::uint16_t>(reg[0] >> 8)};
        unit.segment = segment;
        unit.name = unit_name(unit.kind, *unit.function);
    } else if (const auto registers = walk.registers(steps_)) {
        unit.registers = *registers;
        unit.registers_bytes = reg.number(walk.parent().address_cells, walk.parent().size_cells).value_or(0);
        unit.name = unit_name(unit.kind, *registers);
    } else {
        complain(walk, [] {
            return "this IOMMU has no registers that the processor sees: it is named by its path";
        });
        unit.name = unit.origin.place;
    }
    const auto [known, is_first] =
        unit_names_.emplace(unit.name, static_cast<std::uint32_t>(facts_.so_far().units.size()));
    target.unit = known->second;
    if (!is_first)
        return complain(walk,
                        [&] { return fmt::format("a node before it is {}, too: they are one", unit.name); });
    if (!facts_.add(std::move(unit))) target.unit = no_unit;
}

void TreeReader::collect_region(const TreeWalk& walk) {
    const TreeNode& node = walk.node();
    if (walk.depth() != 2 || walk.parent().name != "reserved-memory" || !node.is_available) return;
    Region region;
    region.name = node.name;
    region.offset = static_cast<std::uint32_t>(node.offset);
    region.addresses = node.get(TreeProperty::iommu_addresses);
    const Cells reg = node.get(TreeProperty::reg);
    const auto base = reg.number(0, walk.parent().address_cells);
    const auto size = reg.number(walk.parent().address_cells, walk.parent().size_cells);
    if (node.has(TreeProperty::reg) && base && size) {
        region.memory_base = *base;
        region.memory_bytes = *size;
    }
    regions_.push_back(region);
}

void TreeReader::settle() {
    std::ranges::sort(targets_, {}, [](const Target& one) { return std::pair{one.phandle, one.offset}; });
    for (std::size_t i = 1; i < targets_.size(); ++i)
        if (targets_[i].phandle == targets_[i - 1].phandle)
            facts_.complain(targets_[i].offset, [&] {
                return fmt::format("two nodes have the phandle {:#x}; the first one counts",
                                   targets_[i].phandle);
            });
    for (std::size_t i = 0; i < regions_.size(); ++i) settle_region(i);
    std::ranges::sort(
        needs_, {}, [](const Need& one) { return std::tuple{one.phandle, one.region, one.first, one.last}; });
}

void TreeReader::settle_region(std::size_t number) {
    const Region& region = regions_[number];
    const auto complain_here = [&](auto&& make_text) {
        facts_.complain(region.offset, [&] {
            return fmt::format("/reserved-memory/{}: iommu-addresses: {}", quoted(region.name), make_text());
        });
    };
    std::size_t at = 0;
    while (at < region.addresses.count() && needs_.size() < max_facts) {
        const std::uint32_t phandle = region.addresses[at++];
        const Target* const device = find(phandle);
        if (device == nullptr)
            return complain_here([&] { return fmt::format("nothing has the phandle {:#x}", phandle); });
        const auto first = region.addresses.number(at, device->parent_address_cells);
        const auto size =
            region.addresses.number(at + device->parent_address_cells, device->parent_size_cells);
        at += device->parent_address_cells + std::size_t{device->parent_size_cells};
        if (!first || !size)
            return complain_here([] { return "it is cut off, or an address has too many bits"; });
        if (*size == 0 || *size - 1 > std::numeric_limits<std::uint64_t>::max() - *first) {
            complain_here([&] { return fmt::format("{:#x} bytes at {:#x} are no range", *size, *first); });
            continue;
        }
        const bool is_direct = region.memory_bytes == *size && region.memory_base == *first;
        if (!is_direct && region.memory_bytes != 0)
            complain_here([&] {
                return fmt::format("{:#x} is not its memory at {:#x}: it is a reservation, not a mapping",
                                   *first, region.memory_base);
            });
        needs_.push_back({.phandle = phandle,
                          .region = static_cast<std::uint32_t>(number),
                          .first = *first,
                          .last = *first + (*size - 1),
                          .kind = is_direct ? ReservedKind::direct : ReservedKind::reserved});
    }
}

const Target* TreeReader::find(std::uint32_t phandle) const {
    const auto at = std::ranges::lower_bound(targets_, phandle, {}, &Target::phandle);
    return at != targets_.end() && at->phandle == phandle ? &*at : nullptr;
}

const Target* TreeReader::find_unit(const TreeWalk& walk, std::uint32_t phandle, std::string_view property) {
    const Target* const target = find(phandle);
    if (target != nullptr && target->iommu_cells <= max_iommu_cells) return target;
    complain(walk, [&] {
        return fmt::format("{} names the phandle {:#x}, which {}", property, phandle,
                           target == nullptr ? "no node has" : "is no IOMMU (it has no usable #iommu-cells)");
    });
    return nullptr;
}

void TreeReader::emit() {
    Segments segments{nullptr};
    TreeWalk walk{tree_};
    while (!facts_.is_full() && walk.next()) {
        const TreeNode& node = walk.node();
        segments.visit(walk);
        if (!node.is_available) continue;
        const bool has_map = node.has(TreeProperty::iommu_map);
        if (!needs_.empty()) emit_needs(walk);
        if (!has_map && !node.has(TreeProperty::iommus)) continue;
        if (walk.path().empty()) {
            complain(walk, [] { return "its path is too long: this device is not read"; });
            continue;
        }
        if (node.has(TreeProperty::iommus)) emit_streams(walk);
        if (has_map) emit_map(walk, segments.current());
    }
}

void TreeReader::emit_needs(const TreeWalk& walk) {
    const std::uint32_t phandle = walk.node().phandle();
    const Target* const target = phandle == 0 ? nullptr : find(phandle);
    if (target == nullptr || target->offset != walk.node().offset || walk.path().empty()) return;
    const auto [begin, behind] = std::ranges::equal_range(needs_, phandle, {}, &Need::phandle);
    for (auto need = begin; need != behind; ++need) {
        ReservedFact fact;
        fact.who.emplace_back(NamedDevice{quoted(walk.path())});
        fact.first = need->first;
        fact.last = need->last;
        fact.kind = need->kind;
        fact.origin = {.source = Source::device_tree,
                       .place = "/reserved-memory/" + quoted(regions_[need->region].name)};
        if (!facts_.add(std::move(fact))) return;
    }
}

void TreeReader::emit_streams(const TreeWalk& walk) {
    const Cells list = walk.node().get(TreeProperty::iommus);
    CoverFact cover;
    cover.origin = origin_at(walk);
    cover.which = NamedDevice{cover.origin.place};
    std::size_t at = 0;
    while (at < list.count()) {
        const Target* const target = find_unit(walk, list[at], "iommus");
        // How long its words are is not known, nor where the next one begins.
        if (target == nullptr) return;
        const std::size_t cells = target->iommu_cells;
        if (cells > list.count() - at - 1) return complain(walk, [] { return "iommus is cut off"; });
        if (target->unit == no_unit) {
            complain(walk, [] {
                return "iommus names an IOMMU that is switched off or not read: the device is not behind it";
            });
        } else {
            const UnitFact& unit = facts_.so_far().units[target->unit];
            if (cover.unit != unit.name) cover.unit = unit.name;
            cover.identity.first_id = cells == 0 ? 0 : list[at + 1];
            cover.identity.is_shared = true;
            cover.identity.ignored_bits =
                cells == 2 && unit.kind == UnitKind::smmu_v2 ? list[at + 2] : target->ignored_bits;
            if (!facts_.add(cover)) return;
        }
        at += 1 + cells;
    }
    if (!list.is_whole()) complain(walk, [] { return "iommus is cut off"; });
}

/// Each begins behind the one before it, so that none overlaps another.
bool TreeReader::has_ordered_rows(Cells map) const {
    std::uint64_t free_from = 0;
    for (std::size_t at = 0; at < map.count(); at += map_row_cells) {
        if (map[at] < free_from) return false;
        free_from = std::uint64_t{map[at]} + map[at + 3];
    }
    return true;
}

void TreeReader::emit_map(const TreeWalk& walk, std::uint16_t segment) {
    const Cells map = walk.node().get(TreeProperty::iommu_map);
    const std::uint32_t mask = walk.node().get_cell(TreeProperty::iommu_map_mask).value_or(0xffffffff);
    if (!map.is_whole() || map.count() % map_row_cells != 0)
        return complain(
            walk, [] { return "iommu-map has no whole rows of 4 cells: none is used, as in the kernel"; });
    const bool is_ordered = has_ordered_rows(map);
    const std::size_t rows = map.count() / map_row_cells;
    if (!is_ordered) {
        if (rows > unordered_rows_)
            return complain(walk, [] { return "iommu-map has too many rows in no order: none is used"; });
        unordered_rows_ -= rows;
    }
    Claims claims;
    CoverFact cover;
    cover.origin = origin_at(walk);
    cover.which = PciRange{segment, 0, 0};
    cover.identity.rid_mask = static_cast<std::uint16_t>(mask);
    for (std::size_t at = 0; at < map.count(); at += map_row_cells) {
        const std::uint32_t first = map[at];
        const std::uint32_t size = map[at + 3];
        if ((first & ~mask) != 0)
            return complain(walk, [&] {
                return fmt::format(
                    "iommu-map-mask {:#x} leaves out bits of the row {:#x}: neither it nor what "
                    "follows is used, as in the kernel",
                    mask, first);
            });
        if (size == 0 || size - 1 > 0xffffffff - first) {
            complain(walk, [&] {
                return fmt::format("iommu-map: {:#x} ids from {:#x} are no range", size, first);
            });
            continue;
        }
        const Target* const target = find_unit(walk, map[at + 1], "iommu-map");
        const Piece row{first, first + (size - 1)};
        std::vector<Piece> claimed;
        if (!is_ordered) claimed = claims.claim(row);
        const std::span<const Piece> pieces =
            is_ordered ? std::span{&row, 1} : std::span<const Piece>{claimed};
        if (pieces.size() != 1 || pieces[0].first != row.first || pieces[0].last != row.last)
            complain(walk, [&] {
                return fmt::format("iommu-map: the row {:#x} overlaps one before it, which counts", first);
            });
        if (target == nullptr) continue;
        if (target->unit == no_unit) {
            complain(walk, [] {
                return "iommu-map names an IOMMU that is switched off or not read: its ids are not behind it";
            });
            continue;
        }
        for (const Piece& piece : pieces) {
            cover.identity.first_id = map[at + 2] + (piece.first - first);
            if (!emit_row(walk, cover, *target, piece)) return;
        }
    }
}

bool TreeReader::emit_row(const TreeWalk& walk, CoverFact& cover, const Target& target, Piece rids) {
    const UnitFact& unit = facts_.so_far().units[target.unit];
    if (cover.unit != unit.name) cover.unit = unit.name;
    cover.identity.ignored_bits = target.ignored_bits;
    if (!walk.node().is_pci) return emit_ids(cover, rids.last - rids.first);
    if (rids.first > 0xffff) {
        complain(walk, [&] { return fmt::format("iommu-map: {:#x} is no requester id", rids.first); });
        return true;
    }
    // Functions whose masked id is the last one are in it with the bits that the mask drops.
    const std::uint32_t dropped = static_cast<std::uint16_t>(~cover.identity.rid_mask);
    const bool is_dropped_at_the_end = (dropped & (dropped + 1)) == 0;
    const std::uint32_t last = std::min(rids.last, 0xffffU) | (is_dropped_at_the_end ? dropped : 0);
    auto& range = std::get<PciRange>(cover.which);
    range.first_rid = static_cast<std::uint16_t>(rids.first);
    range.last_rid = static_cast<std::uint16_t>(last);
    return add_range_cover(facts_, cover, unit.function);
}

/// Of another bus than PCI: its ids are not requester ids, and who has which is not known.
bool TreeReader::emit_ids(const CoverFact& row, std::uint32_t count_behind_first) {
    CoverFact cover = row;
    cover.which = NamedDevice{row.origin.place};
    cover.identity.is_shared = true;
    cover.identity.rid_mask = 0xffff;
    const std::uint32_t first = *row.identity.first_id;
    for (const IdBlock& block : id_blocks(first, first + std::min(count_behind_first, 0xffffffff - first))) {
        cover.identity.first_id = block.first;
        cover.identity.ignored_bits = block.ignored_bits | row.identity.ignored_bits;
        if (!facts_.add(cover)) return false;
    }
    return true;
}

}  // namespace

Result<SourceFacts> read_device_tree(std::span<const std::byte> blob) {
    const DeviceTree tree = GM_TRY(DeviceTree::open(blob));
    TableFacts facts{Source::device_tree, tree.size_bytes()};
    TreeReader{tree, facts}.read();
    return std::move(facts).finish();
}

}  // namespace guestmem::dma
