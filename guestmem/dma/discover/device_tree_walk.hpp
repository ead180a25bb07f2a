// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"

/// Goes once over the nodes of a flattened device tree, with the properties that say something about DMA.
///
/// Concepts: libfdt checks the blob as a whole; the walk is our own, because libfdt finds parents, paths and phandles
/// by starting over, which makes a tree of many nodes quadratic. While the walk is at a node, the node, those above
/// it and its path are at hand.
/// Contract: the blob is checked before a walk begins (open()). Of a property that is there twice the first counts;
/// properties behind a child are not seen, as in the kernel. A node deeper than max_tree_depth is passed over with
/// all below it; a path longer than max_tree_path_bytes is empty.
/// Limits: max_tree_bytes; names of properties max_property_name_bytes.
/// Lifetime: nodes refer to the blob; without the right alignment DeviceTree copies it, else the caller keeps it.
/// Threads: a DeviceTree any; a walk one at a time.
/// Cost: a few ns per byte for open() and for each walk.
/// Example:
///     const DeviceTree tree = GM_TRY(DeviceTree::open(blob));
///     for (TreeWalk walk{tree}; walk.next();)
///         if (walk.node().has(TreeProperty::iommus)) ...

namespace guestmem::dma {

inline constexpr std::size_t max_tree_bytes = 16 << 20;
/// The kernel's own limit when it unpacks a tree.
inline constexpr std::size_t max_tree_depth = 64;
/// Paths of machines have some 100.
inline constexpr std::size_t max_tree_path_bytes = 512;
/// The specification has 31, and trees of chip makers up to some 60.
inline constexpr std::size_t max_property_name_bytes = 255;

enum class TreeProperty : std::uint8_t {
    address_cells,
    compatible,
    device_type,
    iommu_addresses,
    iommu_cells,
    iommu_map,
    iommu_map_mask,
    iommus,
    linux_phandle,
    mmu_masters,
    pci_domain,
    phandle,
    ranges,
    reg,
    size_cells,
    status,
    stream_match_mask,
};
inline constexpr std::size_t count_tree_properties = 17;

/// A property's value as cells: 32 bits each, big-endian.
class Cells {
public:
    Cells() = default;
    explicit Cells(std::span<const std::byte> bytes) : bytes_(bytes) {}

    [[nodiscard]] std::size_t count() const { return bytes_.size() / 4; }
    [[nodiscard]] bool is_whole() const { return bytes_.size() % 4 == 0; }
    [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }
    /// 0 behind the end.
    [[nodiscard]] std::uint32_t operator[](std::size_t at) const {
        if (at >= count()) return 0;
        std::uint32_t value = 0;
        for (const std::byte byte : bytes_.subspan(at * 4, 4))
            value = value << 8 | std::to_integer<std::uint8_t>(byte);
        return value;
    }
    /// A number of that many cells; nothing when it has bits above 64 or is not all inside.
    [[nodiscard]] std::optional<std::uint64_t> number(std::size_t at, std::size_t cells) const;

private:
    std::span<const std::byte> bytes_;
};

struct TreeNode {
    std::size_t offset = 0;    ///< in the blob
    std::string_view name;     ///< with its unit address: "pcie@10000000"
    bool is_available = true;  ///< neither it nor one above it is switched off
    bool is_pci = false;
    std::size_t address_cells = 2;  ///< for the addresses of its children
    std::size_t size_cells = 1;
    std::size_t path_bytes = 0;  ///< of the walk's path, this node is the last in it
    bool has_path = true;
    std::uint32_t properties = 0;  ///< a bit for each TreeProperty that it has
    std::array<Cells, count_tree_properties> values;

    [[nodiscard]] bool has(TreeProperty which) const {
        return (properties & 1U << static_cast<unsigned>(which)) != 0;
    }
    /// Empty when it has none.
    [[nodiscard]] Cells get(TreeProperty which) const {
        return has(which) ? values[static_cast<std::size_t>(which)] : Cells{};
    }
    /// Nothing when it has none or one of another size than a cell.
    [[nodiscard]] std::optional<std::uint32_t> get_cell(TreeProperty which) const {
        const Cells cells = get(which);
        return cells.bytes().size() == 4 ? std::optional{cells[0]} : std::nullopt;
    }
    /// 0 when it has none that can be referred to.
    [[nodiscard]] std::uint32_t phandle() const;
};

/// The texts of a value such as `compatible`; the first max_tree_texts of them.
inline constexpr std::size_t max_tree_texts = 32;
[[nodiscard]] std::vector<std::string_view> texts_of(Cells value);

class DeviceTree {
public:
    [[nodiscard]] static Result<DeviceTree> open(std::span<const std::byte> blob);
    DeviceTree(const DeviceTree&) = delete;  // the span can refer to its own copy
    DeviceTree& operator=(const DeviceTree&) = delete;
    DeviceTree(DeviceTree&&) = default;
    DeviceTree& operator=(DeviceTree&&) = default;

    [[nodiscard]] std::size_t size_bytes() const { return blob_.size(); }
    [[nodiscard]] std::span<const std::byte> blob() const { return blob_; }

private:
    DeviceTree() = default;

    std::vector<std::uint64_t> copy_;
    std::span<const std::byte> blob_;
};

class TreeWalk {
public:
    explicit TreeWalk(const DeviceTree& tree);

    /// To the next node in the order of the blob, the root first. False behind the last.
    bool next();

    [[nodiscard]] const TreeNode& node() const { return nodes_[depth_]; }
    /// 0 for the root.
    [[nodiscard]] std::size_t depth() const { return depth_; }
    /// Of the node and those above it.
    [[nodiscard]] const TreeNode& at_depth(std::size_t depth) const { return nodes_[depth]; }
    /// The node above; the root's is the root.
    [[nodiscard]] const TreeNode& parent() const { return nodes_[depth_ == 0 ? 0 : depth_ - 1]; }
    /// "/soc/dma@9000000".
    [[nodiscard]] std::string_view path() const;
    [[nodiscard]] std::size_t count_too_deep() const { return count_too_deep_; }

    /// The address where the processor sees the first range of `reg`, through the `ranges` of all above. Nothing when
    /// it is no memory of the processor. `steps` is what may be spent on it, one for each range looked at.
    [[nodiscard]] std::optional<std::uint64_t> registers(std::size_t& steps) const;

private:
    [[nodiscard]] std::uint32_t word(std::size_t at) const;
    [[nodiscard]] std::string_view text(std::size_t at) const;
    void enter();
    void read_property();

    std::span<const std::byte> blob_;
    std::size_t at_;
    std::size_t strings_;
    std::vector<TreeNode> nodes_;
    std::size_t depth_ = 0;
    std::size_t open_nodes_ = 0;  ///< with those that are passed over
    std::size_t count_too_deep_ = 0;
    std::string path_;
};

}  // namespace guestmem::dma
