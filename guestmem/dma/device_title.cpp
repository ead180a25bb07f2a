// SPDX-License-Identifier: Apache-2.0
#include "guestmem/dma/device_title.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace guestmem::dma {
namespace {

struct ClassName {
    std::uint16_t code;  ///< class and subclass
    std::string_view name;
};

/// Ascending by code.
constexpr std::array subclass_names = {
    ClassName{0x0001, "VGA-compatible device"},
    ClassName{0x0100, "SCSI controller"},
    ClassName{0x0101, "IDE controller"},
    ClassName{0x0104, "RAID controller"},
    ClassName{0x0105, "ATA controller"},
    ClassName{0x0106, "SATA controller"},
    ClassName{0x0107, "SAS controller"},
    ClassName{0x0108, "NVMe controller"},
    ClassName{0x0200, "Ethernet controller"},
    ClassName{0x0207, "InfiniBand controller"},
    ClassName{0x0208, "fabric controller"},
    ClassName{0x0300, "VGA controller"},
    ClassName{0x0302, "3D controller"},
    ClassName{0x0380, "display controller"},
    ClassName{0x0400, "video device"},
    ClassName{0x0401, "audio device"},
    ClassName{0x0403, "HD audio device"},
    ClassName{0x0500, "RAM controller"},
    ClassName{0x0502, "CXL memory"},
    ClassName{0x0600, "host bridge"},
    ClassName{0x0601, "ISA bridge"},
    ClassName{0x0604, "PCI bridge"},
    ClassName{0x0607, "CardBus bridge"},
    ClassName{0x0680, "bridge"},
    ClassName{0x0700, "serial controller"},
    ClassName{0x0780, "communication controller"},
    ClassName{0x0800, "interrupt controller"},
    ClassName{0x0801, "DMA controller"},
    ClassName{0x0805, "SD host controller"},
    ClassName{0x0806, "IOMMU"},
    ClassName{0x0807, "event collector"},
    ClassName{0x0880, "system peripheral"},
    ClassName{0x0c00, "FireWire controller"},
    ClassName{0x0c03, "USB controller"},
    ClassName{0x0c04, "Fibre Channel controller"},
    ClassName{0x0c05, "SMBus controller"},
    ClassName{0x0c06, "InfiniBand controller"},
    ClassName{0x0c09, "CAN controller"},
    ClassName{0x0d11, "Bluetooth controller"},
    ClassName{0x0d80, "wireless controller"},
    ClassName{0x1080, "encryption controller"},
    ClassName{0x1101, "performance counters"},
    ClassName{0x1180, "signal processing controller"},
    ClassName{0x1200, "processing accelerator"},
};
static_assert(std::ranges::is_sorted(subclass_names, {}, &ClassName::code));

/// By class.
constexpr std::array<std::string_view, 0x14> base_names = {"device",
                                                           "storage controller",
                                                           "network controller",
                                                           "display controller",
                                                           "multimedia device",
                                                           "memory controller",
                                                           "bridge",
                                                           "communication controller",
                                                           "system peripheral",
                                                           "input device",
                                                           "docking station",
                                                           "processor",
                                                           "serial bus controller",
                                                           "wireless controller",
                                                           "intelligent controller",
                                                           "satellite controller",
                                                           "encryption controller",
                                                           "signal processing controller",
                                                           "processing accelerator",
                                                           "instrumentation"};

}  // namespace

std::string_view class_name(std::uint32_t class_code) {
    const auto code = static_cast<std::uint16_t>(class_code >> 8);
    const auto* const at = std::ranges::lower_bound(subclass_names, code, {}, &ClassName::code);
    if (at != subclass_names.end() && at->code == code) {
        return at->name;
    }
    const std::size_t base = code >> 8;
    return base < base_names.size() ? base_names[base] : base_names[0];
}

std::string device_title(const PciFunction& function) {
    return fmt::format("{:04x}:{:04x} {}", function.vendor, function.device, class_name(function.class_code));
}

}  // namespace guestmem::dma
