// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "guestmem/dma/origin.hpp"
#include "guestmem/dma/pci_address.hpp"

/// What one source says about IOMMUs, before it is laid onto the devices that the machine has.
///
/// Concepts: a unit is an IOMMU; a cover says which devices a unit controls, and with which identity their requests
/// arrive at it (the requester id itself, an alias, a stream id); a reserved range is memory that firmware wants a
/// device to reach, or that a device cannot use. A firmware table, a device tree and the user's words are all read
/// into the same facts, so that they can be compared, overridden and merged; a complaint is a firmware error that was
/// found and stepped over.
/// Contract: units are named by kind and place ("vtd@fed90000", "amdvi@0000:00:00.2", "smmuv3@9050000",
/// "virtio-iommu@0000:00:02.0"), so that two sources that mean the same unit give it the same name; the user's words
/// name units as they like. Every fact has its origin. Covers are in the order in which the source gives them.
/// Limits: max_facts of all kinds together per source; a source with more is refused.
/// Threads: any; plain values.

namespace guestmem::dma {

inline constexpr std::size_t max_facts = 65536;

enum class UnitKind : std::uint8_t { vt_d, amd_vi, smmu_v2, smmu_v3, virtio_iommu, other };
/// "VT-d", "AMD-Vi", "SMMUv2", "SMMUv3", "virtio-iommu", "other".
[[nodiscard]] std::string_view to_string(UnitKind kind);
/// "vtd@fed90000", "smmuv3@9050000"; the name of a unit that is known by its registers.
[[nodiscard]] std::string unit_name(UnitKind kind, std::uint64_t registers);
/// "amdvi@0000:00:00.2"; the name of a unit that is known by its PCI function.
[[nodiscard]] std::string unit_name(UnitKind kind, PciAddress function);

struct UnitFact {
    std::string name;
    UnitKind kind = UnitKind::other;
    std::optional<std::uint64_t> registers = {};  ///< physical address
    std::uint64_t registers_bytes = 0;            ///< 0: not said
    std::optional<PciAddress> function = {};      ///< AMD-Vi and virtio-iommu: the PCI function that it is
    std::uint16_t segment = 0;
    Origin origin = {};
};

/// Functions of a segment by requester id, both ends included.
struct PciRange {
    std::uint16_t segment = 0;
    std::uint16_t first_rid = 0;
    std::uint16_t last_rid = 0xffff;
};

struct PciHop {
    std::uint8_t device = 0;
    std::uint8_t function = 0;
};

/// A function by the way to it: bridges from a bus on, the last hop is the function itself. Bus numbers below the
/// start bus are the operating system's choice, so that only the machine's own bridges resolve it.
struct PciPath {
    std::uint16_t segment = 0;
    std::uint8_t start_bus = 0;
    std::vector<PciHop> hops = {};
    bool is_bridge = false;  ///< the function and all that is below it
};

/// What no other cover of the segment claims (INCLUDE_PCI_ALL).
struct PciRest {
    std::uint16_t segment = 0;
};

/// A device by its registers.
struct MmioDevice {
    std::uint64_t registers = 0;
    std::uint64_t registers_bytes = 0;  ///< 0: not said
};

/// A device by the name that firmware has for it: an ACPI path "\_SB_.GPIO", a HID with its UID "AMDI0020:1", the
/// path of a device tree's node "/soc/dma@9000000".
struct NamedDevice {
    std::string path;
};

/// Not a DMA device: who sends interrupts as DMA. Says whose messages can be remapped.
struct InterruptSender {
    enum class Kind : std::uint8_t { io_apic, hpet };
    Kind kind = Kind::io_apic;
    std::uint8_t id = 0;
    PciAddress function = {};  ///< the requester id that its messages carry
};

using Selector = std::variant<PciRange, PciPath, PciRest, MmioDevice, NamedDevice, InterruptSender>;
/// "0000:00:00.0-0000:00:1f.7", "mem:0xfe000000", "/soc/dma@9000000".
[[nodiscard]] std::string to_string(const Selector& selector);

/// Which identity requests of a selected device arrive with.
struct IdentityRule {
    /// A function's identity is its requester id unless this says otherwise; MMIO and named devices have none then.
    std::optional<std::uint32_t> first_id = {};
    /// All selected devices share first_id; else the id grows with the requester id from the range's first on.
    bool is_shared = false;
    std::uint16_t rid_mask = 0xffff;  ///< applied to the requester id first (iommu-map-mask)
    std::uint32_t ignored_bits = 0;   ///< of the identity: SMMUv2's stream mask
};

struct CoverFact {
    std::string unit;  ///< a UnitFact's name; empty: said to be behind none
    Selector which = {};
    IdentityRule identity = {};
    Origin origin = {};
    bool is_override = false;  ///< who is selected by it takes nothing from covers that are none: assemble.hpp
};

enum class ReservedKind : std::uint8_t {
    direct,            ///< the device reaches it one to one, always: who owns the device must keep it
    direct_relaxable,  ///< one to one for the firmware only: a VM may have the device without it
    reserved,          ///< not to be used as IOVA
    msi,               ///< interrupts are written there; not to be used as IOVA
};
[[nodiscard]] std::string_view to_string(ReservedKind kind);

struct ReservedFact {
    std::vector<Selector> who = {};  ///< empty: all devices of the source's units
    std::uint64_t first = 0;
    std::uint64_t last = 0;  ///< included
    ReservedKind kind = ReservedKind::direct;
    bool can_read = true;
    bool can_write = true;
    Origin origin = {};
    bool is_override = false;  ///< who is in it takes no other reserved ranges: assemble.hpp
};

/// A firmware error that was stepped over, or something of a source that nobody understands.
struct Complaint {
    Origin origin = {};
    std::string text = {};
};

/// What a table says of the machine as a whole; nothing where it does not say.
struct PlatformFacts {
    std::optional<std::uint8_t> address_bits = {};
    std::optional<bool> has_interrupt_remapping = {};
    std::optional<bool> is_protected_from_start = {};  ///< DMAR's DMA protection opt-in
};

struct SourceFacts {
    std::vector<UnitFact> units = {};
    std::vector<CoverFact> covers = {};
    std::vector<ReservedFact> reserved = {};
    std::vector<Complaint> complaints = {};
    PlatformFacts platform = {};
};

}  // namespace guestmem::dma
