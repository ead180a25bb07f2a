// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/dma/facts.hpp"
#include "guestmem/dma/host_view.hpp"

/// Who can reach what memory: units, the devices behind them, and which devices can only be contained together.
///
/// Concepts: a device's identities are what its requests carry when they arrive at its unit. A containment is the
/// smallest set of devices that one VM must have as a whole: devices that share an identity, that can reach each
/// other without passing the unit, or that the kernel keeps in one group. Each join of two devices has its reason.
/// Contract: indices refer to the vectors of the same Inventory. Every device is in exactly one containment. Two
/// devices of one kernel group are in one containment, always; a containment that the kernel splits into several
/// groups, or a kernel group that no reason explains, is a complaint.
/// Threads: any; plain values.

namespace guestmem::dma {

/// What a unit can really enforce; empty where neither table nor kernel says it.
struct UnitAbilities {
    std::uint64_t page_sizes = 0;  ///< a bit per size; 0: not known
    std::optional<std::uint8_t> input_bits = {};
    std::optional<std::uint8_t> output_bits = {};
    std::optional<bool> has_interrupt_remapping = {};
    /// False: a device that may write may read, too (VT-d's second level, SMMU stage 1).
    std::optional<bool> can_forbid_reads = {};
    std::optional<bool> has_device_tlb = {};
    std::optional<bool> is_coherent = {};
};

struct Unit {
    std::string name = {};
    UnitKind kind = UnitKind::other;
    std::optional<std::uint64_t> registers = {};
    std::optional<PciAddress> function = {};
    std::uint16_t segment = 0;
    std::string kernel_name = {};  ///< "dmar0"; empty: the kernel does not use it
    UnitAbilities abilities = {};
    std::vector<Origin> origins = {};
};

enum class Protection : std::uint8_t {
    behind_unit,    ///< its DMA passes a unit that the kernel uses
    unit_not_used,  ///< a unit is there for it, and the kernel does not use that unit
    none,           ///< it reaches all memory
};
[[nodiscard]] std::string_view to_string(Protection protection);

struct Reserved {
    std::uint64_t first = 0;
    std::uint64_t last = 0;
    ReservedKind kind = ReservedKind::direct;
    bool can_read = true;
    bool can_write = true;
    Origin origin = {};
};

struct Device {
    std::string name =
        {};  ///< "0000:00:02.0", the kernel's name of a platform device, else as the user wrote it
    std::optional<PciAddress> pci = {};
    std::optional<std::uint64_t> registers = {};
    std::string title = {};  ///< "8086:10d3 Ethernet controller"
    std::uint32_t class_code = 0;
    std::string driver = {};
    bool is_bridge = false;  ///< moves other devices' requests; never given to a VM
    bool is_external = false;
    std::optional<std::size_t> unit = {};
    std::vector<std::uint32_t> ids = {};  ///< at the unit, ascending, each once
    Protection protection = Protection::none;
    std::size_t containment = 0;
    std::optional<std::uint32_t> kernel_group = {};
    std::optional<bool> is_interrupt_isolated = {};
    std::vector<Reserved> reserved = {};
    std::vector<Origin> origins = {};
    bool is_seen = true;  ///< the kernel shows it; else somebody speaks of it and it is never behind_unit
};

enum class JoinReason : std::uint8_t {
    shared_identity,       ///< both arrive with the same requester or stream id
    alias,                 ///< firmware (IVRS) or a quirk gives one the other's id
    conventional_bridge,   ///< below a PCI bridge all requests carry the bridge's id or none of their own
    missing_acs_port,      ///< a port above them does not redirect requests between its sides
    missing_acs_function,  ///< functions of one device reach each other inside of it
    unknown_acs,           ///< whether ports redirect could not be read: taken as missing
    kernel_group,          ///< the kernel keeps them together, for a reason that is not seen from here
};
[[nodiscard]] std::string_view to_string(JoinReason reason);

struct Join {
    JoinReason reason = JoinReason::shared_identity;
    std::size_t one = 0;    ///< a device
    std::size_t other = 0;  ///< a device
    std::string text = {};  ///< a sentence: who, through what
};

struct Containment {
    std::vector<std::size_t> devices = {};          ///< ascending
    std::vector<Join> joins = {};                   ///< they connect all of its devices
    std::vector<std::uint32_t> kernel_groups = {};  ///< ascending
};

/// The kernel keeps devices apart although the port or function between them shows no Access Control Services: it
/// knows the hardware (a quirk), or somebody told it to (pcie_acs_override). The kernel is believed; this tells of it.
struct UnprovenSeparation {
    PciAddress port = {};        ///< the port above them, or the first of the functions
    bool is_overridden = false;  ///< the kernel's command line has pcie_acs_override
};

struct Inventory {
    std::vector<Unit> units = {};
    std::vector<Device> devices = {};  ///< PCI functions by address, then the others by name
    std::vector<Containment> containments = {};
    std::vector<KernelGroup> kernel_groups = {};
    PlatformFacts platform = {};
    KernelSettings settings = {};
    std::vector<ThunderboltDomain> thunderbolt = {};
    std::vector<Complaint> complaints = {};
    std::vector<UnprovenSeparation> unproven_separations = {};  ///< ascending by port, each once

    /// By its name, by "pci:0:18.0"-like or sysfs-like address, by "mem:0x...": nothing when there is none.
    [[nodiscard]] std::optional<std::size_t> find_device(std::string_view name) const;
};

}  // namespace guestmem::dma
