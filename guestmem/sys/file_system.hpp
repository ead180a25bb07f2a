// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// Files before they are opened: what a path leads to, what its file system can do; and files made, sized and removed.
///
/// Concepts: path_facts() asks without opening, so that a plan can be checked before anything is made.
/// Contract: symbolic links are followed, and one that leads nowhere does not exist. Who may read and write is
/// asked for the effective user and the file system's state (a read-only mount is not writable), as an open would
/// be. What create_unlinked_file() and create_shm() make has no name that anybody could open. A size beyond
/// RLIMIT_FSIZE is an error before the kernel is asked: its answer would be SIGXFSZ, which ends the program.
/// Threads: any.
/// Limits: sizes and offsets end at 2^63 - 1, like off_t.
/// Cost: system calls; allocate_file() zeroes memory on tmpfs and hugetlbfs.
/// Example:
///     const Fd ram = GM_TRY(create_file("vm1.ram", 0600));
///     GM_TRY(resize_file(ram, 64 << 20));
///     GM_TRY(allocate_file(ram, 0, 64 << 20));
/// Known holes: a path may lead elsewhere by the time it is opened: file_facts() of the descriptor says what came.
/// A device has size 0 here. Another program can lift or lower RLIMIT_FSIZE between the question and the call. A
/// signal that comes again and again may keep an allocation on tmpfs from ever ending: it starts over each time.

namespace guestmem {

enum class FileKind : std::uint8_t { regular, folder, character_device, block_device, other };

/// All but `exists` are zero when it does not.
struct PathFacts {
    bool exists = false;
    FileKind kind = FileKind::other;
    std::uint64_t size_bytes = 0;
    std::uint64_t allocated_bytes = 0;
    std::uint64_t device = 0;
    std::uint64_t inode = 0;
    bool is_readable = false;
    bool is_writable = false;
};

/// A path that leads nowhere is no error; a folder on the way that may not be searched is one.
[[nodiscard]] Result<PathFacts> path_facts(const std::string& path);

/// Whether the name itself is a link, wherever it leads; false when there is none.
[[nodiscard]] Result<bool> is_link(const std::string& path);

struct FileSystemFacts {
    /// "ext4" (also ext2 and ext3), "xfs", "btrfs", "tmpfs", "ramfs", "hugetlbfs", "overlay", "nfs", "fuse" or
    /// "proc"; of another one its magic number, "0x62656572".
    std::string type;
    std::uint64_t page_bytes = 0;  ///< of a mapping: the huge page on hugetlbfs, else the host's page
    /// For an ordinary user; nothing where the file system sets no limit of its own.
    std::optional<std::uint64_t> free_bytes;
    bool is_huge = false;    ///< hugetlbfs
    bool is_memory = false;  ///< tmpfs, ramfs or hugetlbfs: its bytes are in memory
};

/// The path has to exist: for a file that will be made, ask for its folder.
[[nodiscard]] Result<FileSystemFacts> file_system_facts(const std::string& path);
[[nodiscard]] Result<FileSystemFacts> file_system_facts(FdView fd);

/// A file without a name in `folder`, mode 0600, that goes with its last descriptor and mapping. Where the file
/// system cannot make one (O_TMPFILE), it is made as `name_prefix` and six letters, and removed at once.
[[nodiscard]] Result<Fd> create_unlinked_file(const std::string& folder, const std::string& name_prefix);

/// A file that was not there; `mode` (at most 0777) less the process's umask.
[[nodiscard]] Result<Fd> create_file(const std::string& path, std::uint32_t mode);

/// A POSIX shared memory object without a name, mode 0600. `name_hint` is seen in /proc/PID/maps.
[[nodiscard]] Result<Fd> create_shm(const std::string& name_hint);

/// Cuts the file, or lets it grow by a hole.
[[nodiscard]] Result<void> resize_file(FdView fd, std::uint64_t size_bytes);
/// Gives these bytes their blocks, and lets the file grow where they reach past its end. What is there stays.
[[nodiscard]] Result<void> allocate_file(FdView fd, std::uint64_t offset_bytes, std::uint64_t size_bytes);
/// Gives whole blocks back: these bytes are zeros, the size stays.
[[nodiscard]] Result<void> punch_hole(FdView fd, std::uint64_t offset_bytes, std::uint64_t size_bytes);

/// Removes a name; a file that is not there is an error.
[[nodiscard]] Result<void> remove_file(const std::string& path);

}  // namespace guestmem
