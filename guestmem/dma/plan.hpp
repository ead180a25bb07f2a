// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/dma/grants.hpp"
#include "guestmem/dma/inventory.hpp"

/// What would be programmed for each device of a grants file, and every reason why it would not work.
///
/// Concepts: a domain is a set of mappings that devices share: the devices of a VM with equal reach have one. A mapping
/// is what one call to the kernel makes, an entry of its table; neighbors with equal permissions are one. Permissions
/// are those asked for and those that the unit can keep: one that cannot forbid reads turns "w" into "rw". A range that
/// is no whole number of the unit's pages grows to whole ones, and what it grows over is said.
/// Contract: problems are all that are found, not the first; one that is_fatal means that the kernel would refuse, or
/// that a device would reach memory of another VM, of the host, or of its own VM with permissions that contradict. What
/// a unit cannot do as finely as it was asked for, inside of the VM's own memory (a range grows to whole pages, "w" is
/// kept as "rw"), is said and not fatal. Two devices of one containment are never planned for two VMs without a fatal
/// problem, in the plan of either VM alone, too. A device that is named twice, or by two VMs, is one. The plan is there
/// even when it has problems. Nothing is changed on the machine.
/// Cost: n log n in the ranges of all devices.
/// Threads: any.
/// Known holes: the time is what kernels of 2025 on x86 were measured to take per GiB; a machine may be several times
/// slower. What other users of VFIO have locked already is not seen.

namespace guestmem::dma {

enum class ProblemKind : std::uint8_t {
    no_such_device,
    is_bridge,
    claimed_twice,      ///< by two VMs, or twice by one
    acs_overridden,     ///< the command line makes groups smaller than the hardware keeps them apart
    containment_split,  ///< devices that can only be contained together are for two VMs, or reach other memory
    not_protected,      ///< no unit, or one that the kernel does not use
    group_not_viable,   ///< another device of its group has a driver of the host
    driver_bound,       ///< the device itself has a driver of the host
    firmware_memory,    ///< a non-relaxable reserved region
    interrupts_not_isolated,
    reserved_overlap,  ///< the MSI window, or what the unit cannot use as IOVA
    beyond_unit,       ///< addresses that the unit does not have
    entry_limit,
    memory_lock,
    granule,                ///< rounding lets the device reach more than was granted
    permission_conflict,    ///< ranges of one device overlap (after rounding) with other permissions
    permission_kept_wider,  ///< the unit cannot forbid reads
    read_only_memory,       ///< writing was granted to memory that the VM itself may only read
    not_settled,            ///< what is needed to know could not be read
};
/// "no-such-device", ...: stable, for programs.
[[nodiscard]] std::string_view to_string(ProblemKind kind);

struct Problem {
    ProblemKind kind = ProblemKind::no_such_device;
    bool is_fatal = true;
    std::string vm = {};
    std::string device = {};                 ///< empty: of the whole VM
    std::size_t line = 0;                    ///< of the grants file
    std::string text = {};                   ///< a sentence: what, where, why
    std::vector<std::string> commands = {};  ///< for a shell, that would mend it; may be empty
    std::string other_vm = {};  ///< of a problem between two VMs: the other one, whose problem it is, too
};

struct PlannedMapping {
    std::uint64_t iova = 0;
    std::uint64_t size_bytes = 0;
    Permission asked = {};
    Permission kept = {};
    std::uint64_t page_bytes = 0;  ///< the largest page that the unit can use for the most of it
};

struct PlannedDomain {
    std::size_t vm = 0;  ///< of the grants
    std::vector<std::string> devices = {};
    std::string unit = {};                      ///< the first device's; empty: none
    std::vector<PlannedMapping> mappings = {};  ///< by address
    std::uint64_t mapped_bytes = 0;
    std::uint64_t locked_bytes = 0;  ///< counted against the limit
    std::uint64_t page_entries = 0;  ///< leaf entries of the unit's tables
    double seconds_populated = 0;    ///< of mapping, when all of the memory is there
    double seconds_unpopulated = 0;  ///< when none is: it is made and cleared meanwhile
};

struct PlannedVm {
    std::string name = {};
    std::uint64_t locked_bytes = 0;
    std::optional<std::uint64_t> memory_lock_bytes = {};  ///< the limit in force; nothing: none
};

struct Plan {
    std::vector<PlannedVm> vms = {};  ///< as in the grants
    std::vector<PlannedDomain> domains = {};
    std::vector<Problem> problems = {};  ///< by line of the file

    [[nodiscard]] bool would_work() const;
};

/// `only_vm`: of this VM only, though all are looked at for conflicts; empty: of all.
[[nodiscard]] Plan make_plan(const Inventory& inventory, const Grants& grants, std::string_view only_vm = {});

}  // namespace guestmem::dma
