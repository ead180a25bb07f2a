// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/facts.hpp"

#include <fmt/format.h>

#include <array>
#include <charconv>

namespace guestmem::dma {
namespace {

std::string_view name_prefix(UnitKind kind) {
    switch (kind) {
        case UnitKind::vt_d: return "vtd";
        case UnitKind::amd_vi: return "amdvi";
        case UnitKind::smmu_v2: return "smmuv2";
        case UnitKind::smmu_v3: return "smmuv3";
        case UnitKind::virtio_iommu: return "virtio-iommu";
        case UnitKind::other: return "iommu";
    }
    return "iommu";
}

struct SelectorText {
    std::string operator()(const PciRange& range) const {
        const PciAddress first{range.segment, range.first_rid};
        if (range.first_rid == range.last_rid) {
            return to_string(first);
        }
        return fmt::format("{}-{}", to_string(first), to_string(PciAddress{range.segment, range.last_rid}));
    }
    std::string operator()(const PciPath& path) const {
        std::string text = fmt::format("{:04x}:{:02x}:", path.segment, path.start_bus);
        for (std::size_t i = 0; i < path.hops.size(); ++i) {
            text +=
                fmt::format("{}{:02x}.{:x}", i == 0 ? "" : "/", path.hops[i].device, path.hops[i].function);
        }
        return text + (path.is_bridge ? " and below" : "");
    }
    std::string operator()(const PciRest& rest) const {
        return fmt::format("the rest of segment {:04x}", rest.segment);
    }
    std::string operator()(const MmioDevice& device) const {
        return fmt::format("mem:{:#x}", device.registers);
    }
    std::string operator()(const NamedDevice& device) const { return device.path; }
    std::string operator()(const InterruptSender& sender) const {
        return fmt::format("{} {}", sender.kind == InterruptSender::Kind::io_apic ? "I/O APIC" : "HPET",
                           sender.id);
    }
};

}  // namespace

std::string_view to_string(UnitKind kind) {
    switch (kind) {
        case UnitKind::vt_d: return "VT-d";
        case UnitKind::amd_vi: return "AMD-Vi";
        case UnitKind::smmu_v2: return "SMMUv2";
        case UnitKind::smmu_v3: return "SMMUv3";
        case UnitKind::virtio_iommu: return "virtio-iommu";
        case UnitKind::other: return "other";
    }
    return "other";
}

std::string unit_name(UnitKind kind, std::uint64_t registers) {
    // Without fmt: a hostile table has a unit for each of its 16 bytes.
    std::array<char, 16> digits;
    const auto [stop, error] = std::to_chars(digits.data(), digits.data() + digits.size(), registers, 16);
    std::string name{name_prefix(kind)};
    name += '@';
    return name.append(digits.data(), stop);
}

std::string unit_name(UnitKind kind, PciAddress function) {
    return fmt::format("{}@{}", name_prefix(kind), to_string(function));
}

std::string to_string(const Selector& selector) { return std::visit(SelectorText{}, selector); }

std::string_view to_string(ReservedKind kind) {
    switch (kind) {
        case ReservedKind::direct: return "direct";
        case ReservedKind::direct_relaxable: return "direct-relaxable";
        case ReservedKind::reserved: return "reserved";
        case ReservedKind::msi: return "msi";
    }
    return "reserved";
}

}  // namespace guestmem::dma
