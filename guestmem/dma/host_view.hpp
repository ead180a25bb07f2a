// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "guestmem/dma/facts.hpp"
#include "guestmem/dma/pci_address.hpp"

/// The machine as its kernel shows it: PCI functions, platform devices, IOMMUs, groups, settings.
///
/// Concepts: this is what sysfs, /proc and PCI configuration space say and nothing else; firmware's and the user's
/// words are facts.hpp, and inventory.hpp is what comes of laying one onto the other. It is a plain value, so that a
/// captured machine and a test's machine are the same thing.
/// Contract: functions are sorted by address and each is there once. What could not be read (no permission, a file
/// that is missing) is an empty optional, never a guess; each kind of it is one complaint.
/// Threads: any; plain values.

namespace guestmem::dma {

/// The PCI Express capability's device/port type; conventional when there is no such capability.
enum class PortType : std::uint8_t {
    conventional,
    endpoint,
    legacy_endpoint,
    root_port,
    upstream_port,
    downstream_port,
    express_to_pci_bridge,
    pci_to_express_bridge,
    integrated_endpoint,
    event_collector,
};

/// Access Control Services: what the port can enforce and what is switched on. Bits as in the ACS capability.
struct AccessControl {
    static constexpr std::uint16_t source_validation = 1 << 0;
    static constexpr std::uint16_t translation_blocking = 1 << 1;
    static constexpr std::uint16_t request_redirect = 1 << 2;
    static constexpr std::uint16_t completion_redirect = 1 << 3;
    static constexpr std::uint16_t upstream_forwarding = 1 << 4;

    std::uint16_t can = 0;
    std::uint16_t is_on = 0;
    /// The capability is there. With no bit in `can` it says that nothing passes between functions at all.
    bool is_present = false;
};

struct PciFunction {
    PciAddress address = {};
    std::uint16_t vendor = 0xffff;
    std::uint16_t device = 0xffff;
    std::uint32_t class_code = 0;  ///< class, subclass, interface: 0x060400
    std::uint8_t header_type = 0;  ///< without the multifunction bit: 0 endpoint, 1 bridge, 2 CardBus bridge
    bool is_multifunction = false;
    std::optional<std::uint8_t> secondary_bus = {};    ///< of a bridge
    std::optional<std::uint8_t> subordinate_bus = {};  ///< of a bridge
    PortType port = PortType::conventional;
    bool has_slot = false;  ///< PCI Express slot implemented: something can be plugged in
    /// Nothing when the extended configuration space could not be read; `can` is 0 when there is no ACS.
    std::optional<AccessControl> access_control = {};
    std::optional<bool> has_msi = {};                  ///< MSI or MSI-X
    std::optional<bool> has_address_services = {};     ///< ATS: it may keep translations itself
    std::optional<PciAddress> physical_function = {};  ///< of a virtual function
    std::string driver = {};                           ///< bound kernel driver; empty: none
    std::optional<std::uint32_t> group = {};           ///< kernel's IOMMU group
    std::string kernel_unit = {};                      ///< "dmar0", behind which the kernel has it
    std::string firmware_node = {};   ///< ACPI path or device tree path, when the kernel tells it
    bool is_external_facing = false;  ///< the port leads outside of the machine
    bool is_removable = false;
    std::optional<std::uint64_t> first_register = {};  ///< of its first memory BAR
};

struct PlatformDevice {
    std::string name = {};           ///< "9000000.dma", "AMDI0020:00"
    std::string firmware_node = {};  ///< "/soc/dma@9000000" or "\_SB_.GPIO"
    std::optional<std::uint64_t> registers = {};
    std::uint64_t registers_bytes = 0;
    std::string driver = {};
    std::optional<std::uint32_t> group = {};
    std::string kernel_unit = {};
    /// A PCI function of a segment above ffff (behind VMD), which has no PciAddress: "10000:01:00.0".
    bool is_pci = false;
    bool is_bridge = false;        ///< of PCI
    std::uint32_t class_code = 0;  ///< of PCI
    std::string title = {};        ///< of PCI: "8086:0a54 Non-Volatile memory controller"
};

/// /sys/class/iommu/NAME.
struct KernelUnit {
    std::string name = {};  ///< "dmar0", "ivhd0", "smmu3.0x0000000009050000", "virtio0"
    std::optional<std::uint64_t> registers = {};
    std::optional<PciAddress> function = {};       ///< its parent PCI function
    std::optional<std::uint64_t> capability = {};  ///< VT-d: cap; AMD-Vi: cap
    std::optional<std::uint64_t> extended = {};    ///< VT-d: ecap; AMD-Vi: features
};

struct KernelReserved {
    std::uint64_t first = 0;
    std::uint64_t last = 0;
    ReservedKind kind = ReservedKind::reserved;
};

struct KernelGroup {
    std::uint32_t number = 0;
    std::string type = {};  ///< default domain: "DMA", "DMA-FQ", "identity", "blocked"; empty: unreadable
    std::vector<std::string> members = {};  ///< names in devices/: "0000:00:02.0", "9000000.dma"
    std::vector<KernelReserved> reserved = {};
    std::string name =
        {};  ///< empty: none; VFIO calls those that it makes up without an IOMMU "vfio-noiommu"
};

struct ThunderboltDomain {
    std::string name = {};
    std::string security = {};                      ///< "user", "none", ...
    std::optional<bool> has_iommu_protection = {};  ///< iommu_dma_protection
};

/// What bounds and shapes mappings on this kernel.
struct KernelSettings {
    std::string release = {};
    std::string architecture = {};  ///< "x86_64", "aarch64"; empty: not known
    std::string command_line = {};
    std::optional<bool> may_use_unsafe_interrupts = {};  ///< vfio_iommu_type1 allow_unsafe_interrupts
    std::optional<std::uint64_t> dma_entry_limit = {};   ///< vfio_iommu_type1 dma_entry_limit
    std::optional<bool> has_iommufd = {};
    std::optional<bool> has_vfio = {};
    bool has_posted_no_iommu = false;  ///< vfio enable_unsafe_noiommu_mode is on
    std::optional<std::uint64_t> memory_lock_bytes =
        {};  ///< RLIMIT_MEMLOCK of who asks; nothing: unlimited or unknown
    std::optional<std::uint64_t> memory_total_bytes = {};
    std::uint64_t page_bytes = 4096;
};

struct HostView {
    std::vector<PciFunction> functions = {};
    std::vector<PlatformDevice> platform_devices = {};
    std::vector<KernelUnit> units = {};
    std::vector<KernelGroup> groups = {};
    std::vector<ThunderboltDomain> thunderbolt = {};
    KernelSettings settings = {};
    std::vector<Complaint> complaints = {};

    [[nodiscard]] const PciFunction* find(PciAddress address) const;
};

}  // namespace guestmem::dma
