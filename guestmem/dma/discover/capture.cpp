// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/discover/capture.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "guestmem/dma/discover/capture_rules.hpp"
#include "guestmem/dma/discover/firmware_tables.hpp"
#include "guestmem/dma/discover/pci_config.hpp"
#include "guestmem/sys/file_system.hpp"

namespace guestmem::dma {
namespace {

constexpr std::size_t max_captured_file_bytes = std::size_t{2} << 20;

using enum CaptureKind;

constexpr std::array<CapturePattern, 55> patterns{{
    {.path = "sys/firmware/acpi/tables/DMAR*", .kind = file, .why = "VT-d: units, devices, reserved memory"},
    {.path = "sys/firmware/acpi/tables/IVRS*", .kind = file, .why = "AMD-Vi: the same"},
    {.path = "sys/firmware/acpi/tables/IORT*", .kind = file, .why = "Arm SMMU: the same"},
    {.path = "sys/firmware/acpi/tables/VIOT*", .kind = file, .why = "virtio-iommu: the same"},
    {.path = "sys/firmware/fdt", .kind = device_tree, .why = "boards without ACPI: the same"},
    {.path = "sys/bus/pci/devices/*/config", .kind = configuration, .why = "bridges, ACS, ATS, MSI"},
    {.path = "sys/bus/pci/devices/*/vendor",
     .kind = file,
     .why = "of a virtual function, whose space has none"},
    {.path = "sys/bus/pci/devices/*/device", .kind = file, .why = "the same"},
    {.path = "sys/bus/pci/devices/*/class",
     .kind = file,
     .why = "what it is, where its space is not readable"},
    {.path = "sys/bus/pci/devices/*/resource", .kind = file, .why = "addresses of its registers"},
    {.path = "sys/bus/pci/devices/*/removable", .kind = file, .why = "devices behind external ports"},
    {.path = "sys/bus/pci/devices/*/physfn", .kind = link, .why = "whose virtual function it is"},
    {.path = "sys/bus/pci/devices/*/driver", .kind = link, .why = "who uses it"},
    {.path = "sys/bus/pci/devices/*/iommu_group", .kind = link, .why = "what the kernel keeps together"},
    {.path = "sys/bus/pci/devices/*/iommu", .kind = link, .why = "behind which unit the kernel has it"},
    {.path = "sys/bus/pci/devices/*/of_node", .kind = link, .why = "its name in the device tree"},
    {.path = "sys/bus/pci/devices/*/firmware_node/path", .kind = file, .why = "its name in ACPI"},
    {.path = "sys/bus/platform/devices/*/driver", .kind = link, .why = "devices without PCI: who uses it"},
    {.path = "sys/bus/platform/devices/*/iommu_group", .kind = link, .why = "the kernel's group"},
    {.path = "sys/bus/platform/devices/*/iommu", .kind = link, .why = "the kernel's unit"},
    {.path = "sys/bus/platform/devices/*/of_node", .kind = link, .why = "its name in the device tree"},
    {.path = "sys/bus/platform/devices/*/firmware_node/path", .kind = file, .why = "its name in ACPI"},
    {.path = "sys/bus/amba/devices/*/driver", .kind = link, .why = "Arm's own bus: the same"},
    {.path = "sys/bus/amba/devices/*/iommu_group", .kind = link, .why = "the kernel's group"},
    {.path = "sys/bus/amba/devices/*/iommu", .kind = link, .why = "the kernel's unit"},
    {.path = "sys/bus/amba/devices/*/of_node", .kind = link, .why = "its name in the device tree"},
    {.path = "sys/class/iommu/*/intel-iommu/address", .kind = file, .why = "joins the kernel's unit to DMAR"},
    {.path = "sys/class/iommu/*/intel-iommu/version", .kind = file, .why = "of the unit's architecture"},
    {.path = "sys/class/iommu/*/intel-iommu/cap", .kind = file, .why = "what the unit can enforce"},
    {.path = "sys/class/iommu/*/intel-iommu/ecap", .kind = file, .why = "the same"},
    {.path = "sys/class/iommu/*/amd-iommu/cap", .kind = file, .why = "what the unit can enforce"},
    {.path = "sys/class/iommu/*/amd-iommu/features", .kind = file, .why = "the same"},
    {.path = "sys/class/iommu/*/device", .kind = link, .why = "the unit's own PCI function"},
    {.path = "sys/class/iommu/*/devices/*", .kind = link, .why = "the devices that the kernel has behind it"},
    {.path = "sys/kernel/iommu_groups/*/type", .kind = file, .why = "translated, identity or blocked"},
    {.path = "sys/kernel/iommu_groups/*/name",
     .kind = file,
     .why = "groups that VFIO made up without a unit"},
    {.path = "sys/kernel/iommu_groups/*/reserved_regions", .kind = file, .why = "addresses not to be used"},
    {.path = "sys/kernel/iommu_groups/*/devices/*", .kind = link, .why = "the members"},
    {.path = "sys/bus/thunderbolt/devices/domain*/security", .kind = file, .why = "who may attach devices"},
    {.path = "sys/bus/thunderbolt/devices/domain*/iommu_dma_protection",
     .kind = file,
     .why = "whether firmware protects external ports"},
    {.path = "sys/module/vfio/initstate", .kind = file, .why = "whether VFIO is loaded"},
    {.path = "sys/module/vfio/parameters/enable_unsafe_noiommu_mode",
     .kind = file,
     .why = "VFIO without IOMMU"},
    {.path = "sys/module/vfio_pci/initstate", .kind = file, .why = "whether its driver for PCI is loaded"},
    {.path = "sys/module/vfio_iommu_type1/initstate",
     .kind = file,
     .why = "whether its IOMMU side is loaded"},
    {.path = "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
     .kind = file,
     .why = "devices whose interrupts are not isolated"},
    {.path = "sys/module/vfio_iommu_type1/parameters/dma_entry_limit",
     .kind = file,
     .why = "limit of mappings"},
    {.path = "sys/module/vfio_iommu_type1/parameters/disable_hugepages", .kind = file, .why = "page sizes"},
    {.path = "sys/class/misc/vfio/dev", .kind = file, .why = "whether VFIO is there"},
    {.path = "sys/class/misc/iommu/dev", .kind = file, .why = "whether iommufd is there"},
    {.path = "sys/kernel/security/lockdown", .kind = file, .why = "what root may still do"},
    {.path = "proc/cmdline", .kind = command_line, .why = "parameters of IOMMU, PCI and VFIO, no others"},
    {.path = "proc/meminfo", .kind = memory_total, .why = "how much memory there is to reach"},
    {.path = "proc/sys/kernel/osrelease", .kind = file, .why = "the kernel's release"},
    {.path = "proc/sys/kernel/arch", .kind = file, .why = "the machine's architecture"},
    {.path = page_bytes_path,
     .kind = file,
     .why = "the page size: made by the capture, not the kernel's file"},
}};

/// One capture.
class Taker {
public:
    explicit Taker(HostTree& tree) : tree_(tree) {}

    Result<Capture> run() {
        for (const CapturePattern& pattern : patterns) GM_TRY(take_all(pattern));
        if (tree_.is_live()) {
            const auto facts = GM_TRY(file_system_facts(std::string{"/proc"}));
            add(std::string{page_bytes_path}, fmt::format("{}\n", facts.page_bytes), CaptureKind::file);
        }
        // Sorted, a reader need not sort; and the order of the table is nobody's business.
        std::ranges::sort(taken_, {}, &Taken::path);
        const auto twice = std::ranges::unique(taken_, {}, &Taken::path);
        taken_.erase(twice.begin(), twice.end());
        TarWriter writer;
        for (const Taken& one : taken_) {
            if (one.kind == CaptureKind::link) {
                GM_TRY(writer.add_link(one.path, one.content));
            } else {
                GM_TRY(writer.add_file(one.path, one.content));
            }
            if (writer.size_bytes() > max_host_archive_bytes)
                return Error{Errc::out_of_range,
                             fmt::format("capture: more than {} bytes", max_host_archive_bytes)};
        }
        return Capture{.archive = std::move(writer).finish(),
                       .count_entries = taken_.size(),
                       .unreadable = std::move(unreadable_)};
    }

private:
    struct Taken {
        std::string path;
        std::string content;
        CaptureKind kind;
    };

    void add(std::string path, std::string content, CaptureKind kind) {
        taken_.push_back({.path = std::move(path), .content = std::move(content), .kind = kind});
    }

    /// All paths that a pattern stands for.
    Result<void> take_all(const CapturePattern& pattern) {
        std::vector<std::string> paths{""};
        std::string_view rest = pattern.path;
        while (!rest.empty()) {
            const std::size_t slash = std::min(rest.find('/'), rest.size());
            const std::string_view part = rest.substr(0, slash);
            rest.remove_prefix(std::min(slash + 1, rest.size()));
            if (!part.ends_with('*')) {
                for (std::string& path : paths) path += fmt::format("{}{}", path.empty() ? "" : "/", part);
                continue;
            }
            paths = GM_TRY(expand(paths, part.substr(0, part.size() - 1)));
        }
        for (const std::string& path : paths) take(path, pattern.kind);
        return {};
    }

    Result<std::vector<std::string>> expand(const std::vector<std::string>& folders,
                                            std::string_view beginning) {
        std::vector<std::string> paths;
        for (const std::string& folder : folders) {
            auto names = tree_.list(folder, max_captured_names);
            if (!names && names.error().code() == Errc::out_of_range) return std::move(names).error();
            if (!names) {
                unreadable_.push_back(folder);
                continue;
            }
            for (const std::string& name : *names) {
                // A shell's "*" passes over names with a dot in front.
                if (!name.starts_with(beginning) || name.starts_with('.')) continue;
                if (paths.size() == max_captured_names)
                    return Error{Errc::out_of_range,
                                 fmt::format("capture {}: more than {} names", folder, max_captured_names)};
                paths.push_back(fmt::format("{}/{}", folder, name));
            }
        }
        return paths;
    }

    void take(const std::string& path, CaptureKind kind) {
        auto content =
            kind == CaptureKind::link ? tree_.link_target(path) : tree_.read(path, max_captured_file_bytes);
        if (!content) {
            unreadable_.push_back(path);
            return;
        }
        if (!*content) return;
        std::string text = *std::move(*content);
        switch (kind) {
            case CaptureKind::file: break;
            case CaptureKind::link: text = inner_target(text); break;
            case CaptureKind::configuration:
                blank_serial_numbers(std::as_writable_bytes(std::span{text}));
                break;
            case CaptureKind::device_tree: blank_private_properties(text); break;
            case CaptureKind::command_line: text = kept_words(text) + "\n"; break;
            case CaptureKind::memory_total: text = memory_total_line(text); break;
        }
        if (kind == CaptureKind::link && text.empty()) return;
        add(path, std::move(text), kind);
    }

    HostTree& tree_;
    std::vector<Taken> taken_;
    std::vector<std::string> unreadable_;
};

}  // namespace

std::span<const CapturePattern> capture_patterns() { return patterns; }

Result<Capture> capture(HostTree& tree) { return Taker{tree}.run(); }

}  // namespace guestmem::dma
