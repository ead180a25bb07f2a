// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/mapping.hpp"

/// What a process has mapped and how much of it is in memory, as the kernel says it in /proc/PID/smaps.
///
/// Concepts: a mapping is one entry of smaps: a range of addresses with one kind of access to one thing. A process
/// makes neighbors that the kernel shows as one, and advice on a part of one is shown as two. "Shared" has two senses
/// here: MapSharing is how it was mapped, shared_clean_bytes and shared_dirty_bytes are pages that somebody else
/// maps as well, whatever way.
/// Contract: mappings are in the order of their addresses and do not overlap: the kernel gives the text in pieces,
/// and where neighbors became one meanwhile, the later entry counts. A line that is missing in older kernels is 0; an
/// entry without Size, Rss or Pss, or with a size of another range, is an error (corrupt). Unknown lines are passed
/// over. A process that is not there is an error (not_found), one that ended while it was read or has no memory is
/// another (unavailable), one of somebody else is a third (permission_denied).
/// Threads: any.
/// Limits: max_smaps_bytes of text, which is more than the 65530 mappings that vm.max_map_count allows by default need.
/// Cost: the kernel walks the page tables of the whole process: 10 to 15 ms for each GiB that is there in pages of 4
/// KiB, 0.1 ms in huge ones; a process that maps something meanwhile may have to wait.
/// Known holes: a snapshot in pieces. A file that is called "x (deleted)" is taken for a deleted x, one with "\012" in
/// its name for one with a line end: the kernel writes both alike. A process that calls exec meanwhile shows a part of
/// what it had. Pages of /dev/mem and of devices are counted nowhere.
/// Example:
///     for (const ProcessMapping& mapping : GM_TRY(process_mappings(pid))) total += mapping.resident_bytes;

namespace guestmem {

inline constexpr std::size_t max_smaps_bytes = std::size_t{128} << 20;

struct ProcessMapping {
    std::uint64_t base = 0;
    std::uint64_t size_bytes = 0;
    bool is_readable = false;
    bool is_writable = false;
    bool is_executable = false;
    MapSharing sharing = MapSharing::private_copy;
    std::uint64_t offset_bytes = 0;  ///< in the file
    std::uint32_t device_major = 0;
    std::uint32_t device_minor = 0;
    std::uint64_t inode = 0;  ///< 0: no file
    /// "/path", "/memfd:name", "/dev/zero" for shared memory without a name, "[heap]"; empty when it has none.
    std::string name = {};
    bool is_deleted = false;  ///< the file has no name any more; a memfd never had one

    std::uint64_t page_bytes = 0;          ///< KernelPageSize; 0 where the kernel does not say
    std::uint64_t resident_bytes = 0;      ///< Rss: without the pages of hugetlbfs
    std::uint64_t proportional_bytes = 0;  ///< Pss: each page divided by how often it is mapped
    std::uint64_t shared_clean_bytes = 0;
    std::uint64_t shared_dirty_bytes = 0;
    std::uint64_t private_clean_bytes = 0;
    std::uint64_t private_dirty_bytes = 0;
    std::uint64_t anonymous_bytes = 0;       ///< pages of no file: also the copies of a private file mapping
    std::uint64_t anonymous_huge_bytes = 0;  ///< AnonHugePages
    std::uint64_t shmem_huge_bytes = 0;      ///< ShmemPmdMapped
    std::uint64_t file_huge_bytes = 0;       ///< FilePmdMapped
    std::uint64_t shared_hugetlb_bytes = 0;
    std::uint64_t private_hugetlb_bytes = 0;
    std::uint64_t swapped_bytes =
        0;  ///< Swap: of shared memory objects all that is out, also what others wrote
    std::uint64_t swapped_proportional_bytes = 0;
    std::string flags = {};  ///< VmFlags: "rd wr sh mr", see proc_pid_smaps(5)

    /// The last byte.
    [[nodiscard]] std::uint64_t last() const { return base + (size_bytes - 1); }
    [[nodiscard]] bool has_file() const { return inode != 0; }
    /// Whether VmFlags has this code of two letters: "ht" for pages of hugetlbfs.
    [[nodiscard]] bool has_flag(std::string_view flag) const;
};

/// The mappings of a text in the form of smaps; `path` is for its errors.
[[nodiscard]] Result<std::vector<ProcessMapping>> parse_smaps(std::string_view text, const std::string& path);

/// All mappings of a process. `proc` is where the kernel shows its processes.
[[nodiscard]] Result<std::vector<ProcessMapping>> process_mappings(std::int32_t pid,
                                                                   const std::string& proc = "/proc");
/// Whether it shows the file that these facts are of; of a file system with more devices than it says (btrfs,
/// overlayfs), whether it has the path, too.
[[nodiscard]] bool shows_file(const ProcessMapping& mapping, const FileFacts& file, std::string_view path);

/// How often a process had to wait for a page: in memory already, or read from a disk. Since it began.
struct ProcessFaults {
    std::uint64_t minor = 0;
    std::uint64_t major = 0;
};
[[nodiscard]] Result<ProcessFaults> process_faults(std::int32_t pid, const std::string& proc = "/proc");

/// Those of this process.
[[nodiscard]] Result<std::vector<ProcessMapping>> own_mappings();

}  // namespace guestmem
