// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/memory_map.hpp"
#include "guestmem/mem/region.hpp"
#include "guestmem/sys/fd.hpp"

/// The memory table of a vhost back end: which guest addresses are which bytes of which file.
///
/// Concepts: a back end in another process (vhost-user, docs/interop/vhost-user.rst of QEMU) maps the files whose
/// descriptors come with the table: VHOST_USER_SET_MEM_TABLE, or a message VHOST_USER_ADD_MEM_REG for each region.
/// The kernel's vhost (VHOST_SET_MEM_TABLE, struct vhost_memory) reads our own address space and needs no files.
/// Contract: RAM is in the table, in the order of addresses. Devices, read-only memory and ROM are not, as in QEMU: a
/// back end writes whatever it maps. RAM that another process cannot map (it has no file, or is a private copy of
/// one) is an error, or is left out when the caller says so. left_out() says what was left out, and why.
/// Regions that continue each other, in guest addresses and in their host memory, are one entry.
/// Errors: RAM that cannot be mapped there; an entry whose offset into its file is not a multiple of the page size,
/// where no back end can map; more entries than the back end takes.
/// Threads: any; plain values.
/// Lifetime: it holds the regions of its entries, so their descriptors stay open.
/// Limits: max_vhost_user_regions entries for a process, max_vhost_kernel_regions for the kernel, unless the back end
/// takes more (VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS; the module parameter max_mem_regions of vhost).
/// Example (guestmem/mem/vhost_table_test.cpp maps what it says):
///     const VhostTable table = GM_TRY(VhostTable::create(*map, {}));
///     send(VHOST_USER_SET_MEM_TABLE, table.encode(), table.fds());
/// Known holes: where the file has huge pages, offsets and sizes have to be multiples of them for a back end that
/// maps each region by itself; that is not checked.

namespace guestmem {

/// What every vhost-user back end takes: "up to 8 regions" in docs/interop/vhost-user.rst.
inline constexpr std::size_t max_vhost_user_regions = 8;
/// The default of max_mem_regions in drivers/vhost/vhost.c.
inline constexpr std::size_t max_vhost_kernel_regions = 64;

/// A region on the wire: the memory region description of vhost-user, and struct vhost_memory_region of
/// <linux/vhost_types.h>, whose last field is named flags_padding and is 0.
struct VhostRegion {
    std::uint64_t guest_phys_addr = 0;
    std::uint64_t memory_size = 0;
    std::uint64_t userspace_addr = 0;
    std::uint64_t mmap_offset = 0;
    friend bool operator==(const VhostRegion&, const VhostRegion&) = default;
};
static_assert(sizeof(VhostRegion) == 32 && alignof(VhostRegion) == 8);
static_assert(offsetof(VhostRegion, guest_phys_addr) == 0);
static_assert(offsetof(VhostRegion, memory_size) == 8);
static_assert(offsetof(VhostRegion, userspace_addr) == 16);
static_assert(offsetof(VhostRegion, mmap_offset) == 24);

enum class VhostBackEnd : std::uint8_t {
    process,  ///< vhost-user
    kernel,   ///< /dev/vhost-net and its like
};

/// What becomes of RAM that another process cannot map.
enum class VhostUnmappable : std::uint8_t { is_error, is_left_out };

struct VhostTableOptions {
    VhostBackEnd back_end = VhostBackEnd::process;
    VhostUnmappable unmappable = VhostUnmappable::is_error;
    std::size_t max_regions = 0;  ///< 0: what every back end of this kind takes
};

/// One entry of the table.
struct VhostEntry {
    VhostRegion region;
    FdView fd;  ///< not open for the kernel
    std::vector<std::shared_ptr<const Region>> parts;
};

enum class VhostOmissionReason : std::uint8_t { device, not_writable, no_file, private_copy };

[[nodiscard]] std::string_view to_string(VhostOmissionReason reason);

struct VhostOmission {
    std::shared_ptr<const Region> region;
    VhostOmissionReason reason = VhostOmissionReason::device;
};

class VhostTable {
public:
    [[nodiscard]] static Result<VhostTable> create(const MemoryMap& map, const VhostTableOptions& options);

    [[nodiscard]] std::span<const VhostEntry> entries() const { return entries_; }
    [[nodiscard]] std::span<const VhostOmission> left_out() const { return left_out_; }
    /// The descriptors that go with encode(), one for each entry; none for the kernel.
    [[nodiscard]] std::vector<FdView> fds() const;

    /// The payload of VHOST_USER_SET_MEM_TABLE, or the argument of VHOST_SET_MEM_TABLE: the number of entries and 4
    /// bytes of padding, then the entries, in the byte order of the machine.
    [[nodiscard]] std::vector<std::byte> encode() const;
    /// The payload of VHOST_USER_ADD_MEM_REG and VHOST_USER_REM_MEM_REG: 8 bytes of padding and one entry.
    [[nodiscard]] static std::vector<std::byte> encode_single(const VhostRegion& region);

private:
    VhostTable() = default;

    std::vector<VhostEntry> entries_;
    std::vector<VhostOmission> left_out_;
};

}  // namespace guestmem
