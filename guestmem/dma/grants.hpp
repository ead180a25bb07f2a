// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"

/// Which VM may have which device, and what of the VM's memory the device may reach.
///
/// Concepts: a VM has named memory at guest physical addresses; a device of a VM reaches all of it, or what its ranges
/// name. The address that a device emits (IOVA) is the guest physical address. A memory may be a share: then its bytes
/// are other VMs' bytes, too. Permissions are from the device's view: read is memory to device, write is device to
/// memory.
/// Contract: read_grants() gives all that the file says, or an error (invalid_argument) with every mistake as
/// file:line:column; a name that is used is there, a range is inside its memory, memory of one VM does not overlap.
/// Whether a device exists, and whether it can be given away, is not known here: plan.hpp says it. A `config` names a
/// .qvmconf file, as the loader understands the name; its RAM becomes the VM's memory through the loader: this room
/// knows nothing of that language.
/// Limits: the max_ constants below.
/// Threads: any; the loader is called from the caller's thread.
/// Example:
///     [[vm]]
///     name = "cluster"
///     memory = [{ name = "ram", at = 0, size = "1G", page = "2M" },
///               { name = "mailbox", at = 0x4000_0000, size = "1M", share = "mailbox" }]
///     device = [{ name = "0000:01:00.0" },
///               { name = "pci:2:0.0", reach = [{ memory = "mailbox", permissions = "r" }] }]

namespace guestmem::dma {

inline constexpr std::size_t max_granted_vms = 4096;
inline constexpr std::size_t max_granted_devices = 65536;  ///< of all VMs together
inline constexpr std::size_t max_ranges_of_device = 65536;
inline constexpr std::size_t max_memories_of_vm = 4096;

struct Permission {
    bool can_read = true;
    bool can_write = true;

    friend bool operator==(Permission, Permission) = default;
};
/// "rw", "r", "w", "-".
[[nodiscard]] std::string to_string(Permission permission);

struct VmMemory {
    std::string name = {};
    std::uint64_t at = 0;  ///< guest physical
    std::uint64_t size_bytes = 0;
    std::uint64_t page_bytes = 4096;  ///< what its backend is made of
    std::string share = {};           ///< empty: the VM's own
    bool is_writable = true;          ///< false: ROM, or a share that the VM may only read
    std::size_t line = 0;             ///< in the file; 0: from a .qvmconf
};

struct GrantedRange {
    std::size_t memory = 0;  ///< of the VM
    std::uint64_t offset_bytes = 0;
    std::uint64_t size_bytes = 0;
    Permission permission = {};
    std::size_t line = 0;
};

struct GrantedDevice {
    std::string name = {};  ///< as the user wrote it
    bool reaches_all = true;
    std::vector<GrantedRange> ranges = {};  ///< when it does not reach all
    std::size_t line = 0;
};

struct GrantedVm {
    std::string name = {};
    std::vector<VmMemory> memory = {};  ///< by address
    std::vector<GrantedDevice> devices = {};
    std::optional<std::uint64_t> memory_lock_bytes =
        {};                                 ///< RLIMIT_MEMLOCK of its process; else that in force
    bool is_memory_lock_unlimited = false;  ///< it has CAP_IPC_LOCK, or no limit
    std::size_t line = 0;
};

struct Grants {
    std::string file = {};
    std::vector<GrantedVm> vms = {};
};

/// The RAM of a .qvmconf file: memories with names, addresses, sizes and page sizes.
using VmMemoryLoader = std::function<Result<std::vector<VmMemory>>(const std::string& path)>;

[[nodiscard]] Result<Grants> read_grants(const std::string& file, std::string_view text,
                                         const VmMemoryLoader& load_config);

}  // namespace guestmem::dma
