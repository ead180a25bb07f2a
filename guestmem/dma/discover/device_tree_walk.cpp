// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/device_tree_walk.hpp"

#include <fmt/format.h>
#include <libfdt.h>

#include <algorithm>
#include <cstring>

namespace guestmem::dma {
namespace {

constexpr std::array<std::string_view, count_tree_properties> property_names{
    "#address-cells", "compatible", "device_type",   "iommu-addresses", "#iommu-cells",     "iommu-map",
    "iommu-map-mask", "iommus",     "linux,phandle", "mmu-masters",     "linux,pci-domain", "phandle",
    "ranges",         "reg",        "#size-cells",   "status",          "stream-match-mask"};

/// The header of version 17, the only one that is written since 2007.
constexpr std::size_t header_bytes = 40;
constexpr std::uint32_t oldest_version = 17;
/// More cells than any address has; more would be a wrong number.
constexpr std::size_t max_address_cells = 4;

/// libfdt looks for the NUL of each name, so that one long text would make many properties quadratic.
bool has_short_texts(std::string_view texts) {
    std::size_t run = 0;
    for (const char c : texts) {
        run = c == '\0' ? 0 : run + 1;
        if (run > max_property_name_bytes) return false;
    }
    return true;
}

std::string_view as_text(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// The value up to its NUL.
std::string_view first_text(Cells value) {
    const std::string_view text = as_text(value.bytes());
    return text.substr(0, text.find('\0'));
}

std::size_t cells_or(const TreeNode& node, TreeProperty which, std::size_t otherwise) {
    const auto cell = node.get_cell(which);
    return cell ? *cell : otherwise;
}

Error refusal(std::string_view why) {
    return Error{
        Errc::corrupt,
        fmt::format("device tree: {}: read it from /sys/firmware/fdt, or look at it with fdtdump", why)};
}

/// What `ranges` of a bus makes of an address of its children.
std::optional<std::uint64_t> translate(const TreeNode& bus, const TreeNode& above, std::uint64_t address,
                                       std::size_t& steps) {
    if (!bus.has(TreeProperty::ranges)) return std::nullopt;
    const Cells ranges = bus.get(TreeProperty::ranges);
    if (ranges.bytes().empty()) return address;
    if (bus.address_cells > max_address_cells || bus.size_cells > max_address_cells ||
        above.address_cells > max_address_cells)
        return std::nullopt;
    const std::size_t row = bus.address_cells + above.address_cells + bus.size_cells;
    if (row == 0) return std::nullopt;
    for (std::size_t at = 0; at + row <= ranges.count(); at += row) {
        if (steps == 0) return std::nullopt;
        --steps;
        const auto from = ranges.number(at, bus.address_cells);
        const auto to = ranges.number(at + bus.address_cells, above.address_cells);
        const auto size = ranges.number(at + bus.address_cells + above.address_cells, bus.size_cells);
        if (from && to && size && address >= *from && address - *from < *size) return *to + (address - *from);
    }
    return std::nullopt;
}

}  // namespace

std::optional<std::uint64_t> Cells::number(std::size_t at, std::size_t cells) const {
    if (at > count() || cells > count() - at) return std::nullopt;
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < cells; ++i) {
        if (value >> 32 != 0) return std::nullopt;
        value = value << 32 | (*this)[at + i];
    }
    return value;
}

std::uint32_t TreeNode::phandle() const {
    for (const TreeProperty which : {TreeProperty::phandle, TreeProperty::linux_phandle}) {
        const auto cell = get_cell(which);
        if (cell && *cell != 0 && *cell != 0xffffffff) return *cell;
    }
    return 0;
}

std::vector<std::string_view> texts_of(Cells value) {
    std::vector<std::string_view> texts;
    std::string_view rest = as_text(value.bytes());
    while (!rest.empty() && texts.size() < max_tree_texts) {
        const std::size_t nul = std::min(rest.find('\0'), rest.size());
        texts.push_back(rest.substr(0, nul));
        rest.remove_prefix(std::min(nul + 1, rest.size()));
    }
    return texts;
}

Result<DeviceTree> DeviceTree::open(std::span<const std::byte> blob) {
    if (blob.size() < header_bytes)
        return refusal(fmt::format("{} bytes, its header has {}", blob.size(), header_bytes));
    if (blob.size() > max_tree_bytes)
        return Error{Errc::out_of_range,
                     fmt::format("device tree: {} bytes; at most {} are read", blob.size(), max_tree_bytes)};
    DeviceTree tree;
    // libfdt reads whole words of 8 bytes in place.
    if (reinterpret_cast<std::uintptr_t>(blob.data()) % alignof(std::uint64_t) != 0) {
        tree.copy_.resize((blob.size() + 7) / 8);
        std::memcpy(tree.copy_.data(), blob.data(), blob.size());
        blob = std::as_bytes(std::span{tree.copy_}).first(blob.size());
    }
    const void* const fdt = blob.data();
    if (const int error = fdt_check_header(fdt); error != 0) return refusal(fdt_strerror(error));
    if (fdt_version(fdt) < oldest_version)
        return Error{Errc::unsupported,
                     fmt::format("device tree: version {} of the format; {} and later are read",
                                 fdt_version(fdt), oldest_version)};
    const std::size_t size = fdt_totalsize(fdt);
    if (size > blob.size())
        return refusal(fmt::format("its header says {} bytes, {} are there", size, blob.size()));
    const std::size_t strings = fdt_off_dt_strings(fdt);
    const std::size_t strings_bytes = fdt_size_dt_strings(fdt);
    if (strings > size || strings_bytes > size - strings) return refusal("its texts are outside of it");
    if (!has_short_texts(as_text(blob.subspan(strings, strings_bytes))))
        return refusal(fmt::format("a property's name is longer than {} bytes", max_property_name_bytes));
    if (const int error = fdt_check_full(fdt, size); error != 0) return refusal(fdt_strerror(error));
    tree.blob_ = blob.first(size);
    return tree;
}

TreeWalk::TreeWalk(const DeviceTree& tree)
    : blob_(tree.blob()),
      at_(fdt_off_dt_struct(blob_.data())),
      strings_(fdt_off_dt_strings(blob_.data())),
      nodes_(max_tree_depth) {}

std::uint32_t TreeWalk::word(std::size_t at) const {
    return at <= blob_.size() && blob_.size() - at >= 4 ? Cells{blob_.subspan(at, 4)}[0] : FDT_END;
}

std::string_view TreeWalk::text(std::size_t at) const {
    const std::string_view rest = as_text(blob_.subspan(std::min(at, blob_.size())));
    return rest.substr(0, rest.find('\0'));
}

std::string_view TreeWalk::path() const {
    if (!node().has_path) return {};
    return depth_ == 0 ? std::string_view{"/"} : std::string_view{path_}.substr(0, node().path_bytes);
}

bool TreeWalk::next() {
    while (true) {
        const std::uint32_t tag = word(at_);
        switch (tag) {
            case FDT_NOP: at_ += 4; break;
            case FDT_PROP: at_ += 12 + (std::size_t{word(at_ + 4)} + 3) / 4 * 4; break;
            case FDT_END_NODE:
                if (open_nodes_ == 0) return false;
                at_ += 4;
                --open_nodes_;
                break;
            case FDT_BEGIN_NODE:
                ++open_nodes_;
                if (open_nodes_ <= max_tree_depth) {
                    enter();
                    return true;
                }
                ++count_too_deep_;
                at_ += 4 + (text(at_ + 4).size() + 4) / 4 * 4;
                break;
            default: return false;
        }
    }
}

void TreeWalk::enter() {
    depth_ = open_nodes_ - 1;
    TreeNode& node = nodes_[depth_];
    const TreeNode& above = parent();
    node.offset = at_;
    node.name = text(at_ + 4);
    node.properties = 0;
    if (depth_ == 0) {
        node.path_bytes = 0;
    } else {
        node.path_bytes = above.path_bytes + 1 + node.name.size();
        node.has_path = above.has_path && node.path_bytes <= max_tree_path_bytes;
        if (node.has_path) {
            path_.resize(above.path_bytes);
            path_ += '/';
            path_ += node.name;
        }
    }
    at_ += 4 + (node.name.size() + 4) / 4 * 4;
    for (std::uint32_t tag = word(at_); tag == FDT_PROP || tag == FDT_NOP; tag = word(at_)) {
        if (tag == FDT_PROP) {
            read_property();
        } else {
            at_ += 4;
        }
    }
    const std::string_view status = first_text(node.get(TreeProperty::status));
    const bool is_on = !node.has(TreeProperty::status) || status == "okay" || status == "ok";
    node.is_available = is_on && (depth_ == 0 || above.is_available);
    node.is_pci = first_text(node.get(TreeProperty::device_type)) == "pci";
    node.address_cells = cells_or(node, TreeProperty::address_cells, 2);
    node.size_cells = cells_or(node, TreeProperty::size_cells, 1);
}

void TreeWalk::read_property() {
    TreeNode& node = nodes_[depth_];
    const std::size_t size = word(at_ + 4);
    const std::string_view name = text(strings_ + word(at_ + 8));
    const auto known = std::ranges::find(property_names, name);
    const std::size_t value = at_ + 12;
    if (known != property_names.end() && value <= blob_.size() && size <= blob_.size() - value) {
        const auto which = static_cast<std::size_t>(known - property_names.begin());
        if ((node.properties & 1U << which) == 0) node.values[which] = Cells{blob_.subspan(value, size)};
        node.properties |= 1U << which;
    }
    at_ = value + (size + 3) / 4 * 4;
}

std::optional<std::uint64_t> TreeWalk::registers(std::size_t& steps) const {
    if (depth_ == 0) return std::nullopt;
    std::optional<std::uint64_t> address = node().get(TreeProperty::reg).number(0, parent().address_cells);
    if (!node().has(TreeProperty::reg) || parent().address_cells == 0 || parent().is_pci) return std::nullopt;
    for (std::size_t depth = depth_ - 1; address && depth > 0; --depth)
        address = translate(nodes_[depth], nodes_[depth - 1], *address, steps);
    return address;
}

}  // namespace guestmem::dma
