// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "guestmem/dma/complaint_list.hpp"
#include "guestmem/dma/inventory.hpp"

/// The IOMMUs of a machine: those that tables or the user name, and those that the kernel runs, as one list.
///
/// Concepts: a unit of a table and one of the kernel are the same when their registers are, or their PCI function;
/// the kernel says registers in an attribute (VT-d) or in the unit's name (SMMUs), and the function as the parent
/// (AMD-Vi, virtio-iommu) or in the name (virtio-iommu).
/// Contract: facts with one name are one unit, and so are facts with the same kind and registers or function; the
/// first that says a thing decides. A unit of the kernel that no fact names is a unit with the kernel as origin. The
/// order is that of the facts, then that of the kernel.
/// Cost: n log n.
/// Threads: any, once made.

namespace guestmem::dma {

class UnitTable {
public:
    UnitTable(const SourceFacts& facts, const HostView& view, ComplaintList& complaints);

    [[nodiscard]] const std::vector<Unit>& units() const { return units_; }
    [[nodiscard]] std::optional<std::size_t> find(const std::string& name) const;
    /// By the kernel's name: "dmar0".
    [[nodiscard]] std::optional<std::size_t> find_kernel(const std::string& name) const;
    /// The unit that this function is.
    [[nodiscard]] std::optional<std::size_t> find_function(PciAddress function) const;
    [[nodiscard]] std::vector<Unit> take() { return std::move(units_); }

private:
    void add_fact(const UnitFact& fact);
    void add_kernel(const KernelUnit& kernel, const HostView& view, ComplaintList& complaints);
    [[nodiscard]] std::optional<std::size_t> find_same(UnitKind kind, std::optional<std::uint64_t> registers,
                                                       std::optional<PciAddress> function) const;
    void index(std::size_t unit);
    /// With what the table of this kind says of interrupts.
    [[nodiscard]] const PlatformFacts& platform_of(UnitKind kind) const {
        return kind == UnitKind::amd_vi ? platform_of_amd_ : platform_;
    }

    PlatformFacts platform_;
    PlatformFacts platform_of_amd_;
    std::vector<Unit> units_;
    std::unordered_map<std::string, std::size_t> by_name_;
    std::unordered_map<std::string, std::size_t> by_kernel_name_;
    std::unordered_multimap<std::uint64_t, std::size_t> by_registers_;
    std::unordered_map<std::uint32_t, std::size_t> by_function_;
};

/// From its name in /sys/class/iommu: "dmar0" is VT-d, "ivhd0" AMD-Vi, "smmu3.0x..." SMMUv3, "smmu.0x..." SMMUv2,
/// "virtio0" or a PCI address virtio-iommu.
[[nodiscard]] UnitKind kind_of_kernel_unit(std::string_view name);

}  // namespace guestmem::dma
