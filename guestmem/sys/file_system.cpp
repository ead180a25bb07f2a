// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/file_system.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

/// XFS keeps its number out of <linux/magic.h>.
constexpr std::uint64_t xfs_magic = 0x58465342;

struct TypeName {
    std::uint64_t magic;
    std::string_view name;
};
constexpr std::array<TypeName, 10> type_names{{{EXT4_SUPER_MAGIC, "ext4"},
                                               {PROC_SUPER_MAGIC, "proc"},
                                               {xfs_magic, "xfs"},
                                               {BTRFS_SUPER_MAGIC, "btrfs"},
                                               {TMPFS_MAGIC, "tmpfs"},
                                               {RAMFS_MAGIC, "ramfs"},
                                               {HUGETLBFS_MAGIC, "hugetlbfs"},
                                               {OVERLAYFS_SUPER_MAGIC, "overlay"},
                                               {NFS_SUPER_MAGIC, "nfs"},
                                               {FUSE_SUPER_MAGIC, "fuse"}}};

/// The largest size and offset of a file.
constexpr std::uint64_t max_file_bytes = std::numeric_limits<off_t>::max();

FileKind kind_of(mode_t mode) {
    switch (mode & S_IFMT) {
        case S_IFREG: return FileKind::regular;
        case S_IFDIR: return FileKind::folder;
        case S_IFCHR: return FileKind::character_device;
        case S_IFBLK: return FileKind::block_device;
        default: return FileKind::other;
    }
}

/// Whether an open for reading (R_OK) or writing (W_OK) would be allowed.
Result<bool> may_access(const std::string& path, int how) {
    const int status =
        checked_call(SysCall::access, [&] { return ::faccessat(AT_FDCWD, path.c_str(), how, AT_EACCESS); });
    if (status == 0) return true;
    switch (errno) {
        case EACCES:
        case EPERM:
        case EROFS:
        case ETXTBSY:  // a program that runs
        case ENOENT:   // gone since it was looked at
            return false;
        default: return Error::from_errno(errno, fmt::format("ask who may use {}", path));
    }
}

FileSystemFacts to_facts(const struct statfs& status) {
    // Some architectures have signed 32 bits here: a magic number is no sign.
    const std::uint64_t magic = static_cast<std::uint32_t>(status.f_type);
    const auto* known = std::ranges::find(type_names, magic, &TypeName::magic);
    FileSystemFacts facts;
    facts.type = known != type_names.end() ? std::string{known->name} : fmt::format("{:#x}", magic);
    facts.is_huge = magic == HUGETLBFS_MAGIC;
    facts.is_memory = facts.is_huge || magic == TMPFS_MAGIC || magic == RAMFS_MAGIC;
    facts.page_bytes = static_cast<std::uint64_t>(facts.is_huge ? status.f_bsize : ::sysconf(_SC_PAGESIZE));
    // hugetlbfs with a minimum and no maximum says -1, file systems without a limit 0.
    constexpr auto endless = std::numeric_limits<decltype(status.f_blocks)>::max();
    if (status.f_blocks == 0 || status.f_blocks == endless) return facts;
    // Blocks are counted in f_frsize where it differs (FUSE, NFS), see statvfs(3).
    const auto block = static_cast<std::uint64_t>(status.f_frsize > 0 ? status.f_frsize : status.f_bsize);
    std::uint64_t free_bytes = 0;
    if (__builtin_mul_overflow(std::uint64_t{status.f_bavail}, block, &free_bytes))
        free_bytes = std::numeric_limits<std::uint64_t>::max();
    facts.free_bytes = free_bytes;
    return facts;
}

/// An error for a piece that is empty or reaches past what a file can be.
Result<void> check_piece(const std::string& what, std::uint64_t offset_bytes, std::uint64_t size_bytes) {
    if (size_bytes == 0) return Error{Errc::invalid_argument, fmt::format("{}: no bytes", what)};
    if (offset_bytes <= max_file_bytes && size_bytes <= max_file_bytes - offset_bytes) return {};
    return Error{Errc::out_of_range, EFBIG, fmt::format("{}: files end at {} bytes", what, max_file_bytes)};
}

/// An error where growing to `size_bytes` would be answered by SIGXFSZ.
Result<void> check_size_limit(FdView fd, const std::string& what, std::uint64_t size_bytes) {
    rlimit limit{};
    if (checked_call(SysCall::getrlimit, [&] { return ::getrlimit(RLIMIT_FSIZE, &limit); }) < 0)
        return Error::from_errno(errno, fmt::format("{}: ask for the limit on file sizes", what));
    if (limit.rlim_cur == RLIM_INFINITY || size_bytes <= limit.rlim_cur) return {};
    const FileFacts facts = GM_TRY_CONTEXT(file_facts(fd), what);
    if (size_bytes <= facts.size_bytes) return {};
    return Error{Errc::out_of_range, EFBIG,
                 fmt::format("{}: files of this process end at {} bytes (RLIMIT_FSIZE)", what,
                             std::uint64_t{limit.rlim_cur})};
}

Result<void> change_blocks(FdView fd, int mode, const std::string& what, std::uint64_t offset_bytes,
                           std::uint64_t size_bytes) {
    const int status = checked_call(SysCall::fallocate, [&] {
        return ::fallocate(fd.number(), mode, static_cast<off_t>(offset_bytes),
                           static_cast<off_t>(size_bytes));
    });
    if (status < 0) return Error::from_errno(errno, what);
    return {};
}

}  // namespace

Result<PathFacts> path_facts(const std::string& path) {
    struct stat status{};
    if (checked_call(SysCall::stat, [&] { return ::stat(path.c_str(), &status); }) < 0) {
        // Below a file is nothing, either.
        if (errno == ENOENT || errno == ENOTDIR) return PathFacts{};
        return Error::from_errno(errno, fmt::format("look at {}", path));
    }
    return PathFacts{.exists = true,
                     .kind = kind_of(status.st_mode),
                     .size_bytes = static_cast<std::uint64_t>(status.st_size),
                     .allocated_bytes = static_cast<std::uint64_t>(status.st_blocks) * 512,
                     .device = status.st_dev,
                     .inode = status.st_ino,
                     .is_readable = GM_TRY(may_access(path, R_OK)),
                     .is_writable = GM_TRY(may_access(path, W_OK))};
}

Result<bool> is_link(const std::string& path) {
    struct stat status{};
    if (checked_call(SysCall::stat, [&] { return ::lstat(path.c_str(), &status); }) == 0)
        return S_ISLNK(status.st_mode);
    if (errno == ENOENT || errno == ENOTDIR) return false;
    return Error::from_errno(errno, fmt::format("look at {}", path));
}

Result<FileSystemFacts> file_system_facts(const std::string& path) {
    struct statfs status{};
    if (checked_call(SysCall::stat, [&] { return ::statfs(path.c_str(), &status); }) < 0)
        return Error::from_errno(errno, fmt::format("ask for the file system of {}", path));
    return to_facts(status);
}

Result<FileSystemFacts> file_system_facts(FdView fd) {
    struct statfs status{};
    if (checked_call(SysCall::stat, [&] { return ::fstatfs(fd.number(), &status); }) < 0)
        return Error::from_errno(errno, fmt::format("ask for the file system of descriptor {}", fd.number()));
    return to_facts(status);
}

Result<Fd> create_unlinked_file(const std::string& folder, const std::string& name_prefix) {
    const std::string what = fmt::format("make a file without a name in {}", folder);
    if (name_prefix.contains('/'))
        return Error{Errc::invalid_argument, fmt::format("{}: '{}' is no part of a name", what, name_prefix)};
    // O_EXCL: nobody gives it a name later.
    const int number = checked_call(
        SysCall::open, [&] { return ::open(folder.c_str(), O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC, 0600); });
    if (number >= 0) return Fd{number};
    // Kernels and file systems without O_TMPFILE see an open of a folder for writing (EISDIR), or say it.
    if (errno != EOPNOTSUPP && errno != EISDIR) return Error::from_errno(errno, what);

    std::string path = fmt::format("{}/{}XXXXXX", folder, name_prefix);
    Fd file{checked_call(SysCall::open, [&] { return ::mkostemp(path.data(), O_CLOEXEC); })};
    if (!file.is_open()) return Error::from_errno(errno, what);
    if (checked_call(SysCall::unlink, [&] { return ::unlink(path.c_str()); }) < 0)
        return Error::from_errno(errno, fmt::format("{}: {} stays behind: remove it", what, path));
    return file;
}

Result<Fd> create_file(const std::string& path, std::uint32_t mode) {
    if (mode > 0777)
        return Error{
            Errc::invalid_argument,
            fmt::format("make file {}: mode {:o} is more than reading, writing and executing", path, mode)};
    const int number = checked_call(SysCall::open, [&] {
        return ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, mode);
    });
    if (number < 0) return Error::from_errno(errno, fmt::format("make file {}", path));
    return Fd{number};
}

Result<Fd> create_shm(const std::string& name_hint) {
    const std::string what = fmt::format("make shared memory object '{}'", name_hint);
    if (name_hint.contains('/') || name_hint.contains('\0'))
        return Error{Errc::invalid_argument, fmt::format("{}: a name has no '/' and no zero byte", what)};
    // Somebody else may have taken the name: /dev/shm is everybody's. The next moment has another one.
    constexpr int max_attempts = 16;
    for (int attempt = 0; attempt < max_attempts; ++attempt) {
        const auto moment = std::chrono::steady_clock::now().time_since_epoch().count();
        const std::string name = fmt::format("/{}-{}-{:x}", name_hint, ::getpid(), moment);
        Fd memory{checked_call(SysCall::open,
                               [&] { return ::shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600); })};
        if (!memory.is_open() && errno == EEXIST) continue;
        if (!memory.is_open()) return Error::from_errno(errno, what);
        if (checked_call(SysCall::unlink, [&] { return ::shm_unlink(name.c_str()); }) < 0)
            return Error::from_errno(errno, fmt::format("{}: {} stays behind: remove it", what, name));
        return memory;
    }
    return Error{Errc::already_exists, EEXIST, fmt::format("{}: {} names were taken", what, max_attempts)};
}

Result<void> resize_file(FdView fd, std::uint64_t size_bytes) {
    const std::string what =
        fmt::format("set the size of descriptor {} to {} bytes", fd.number(), size_bytes);
    if (size_bytes != 0) GM_TRY(check_piece(what, 0, size_bytes));
    GM_TRY(check_size_limit(fd, what, size_bytes));
    const int status = checked_call(SysCall::ftruncate,
                                    [&] { return ::ftruncate(fd.number(), static_cast<off_t>(size_bytes)); });
    if (status < 0) return Error::from_errno(errno, what);
    return {};
}

Result<void> allocate_file(FdView fd, std::uint64_t offset_bytes, std::uint64_t size_bytes) {
    const std::string what =
        fmt::format("allocate {} bytes at {} of descriptor {}", size_bytes, offset_bytes, fd.number());
    GM_TRY(check_piece(what, offset_bytes, size_bytes));
    GM_TRY(check_size_limit(fd, what, offset_bytes + size_bytes));
    return change_blocks(fd, 0, what, offset_bytes, size_bytes);
}

Result<void> punch_hole(FdView fd, std::uint64_t offset_bytes, std::uint64_t size_bytes) {
    const std::string what =
        fmt::format("punch a hole of {} bytes at {} of descriptor {}", size_bytes, offset_bytes, fd.number());
    GM_TRY(check_piece(what, offset_bytes, size_bytes));
    return change_blocks(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, what, offset_bytes, size_bytes);
}

Result<void> remove_file(const std::string& path) {
    if (checked_call(SysCall::unlink, [&] { return ::unlink(path.c_str()); }) < 0)
        return Error::from_errno(errno, fmt::format("remove {}", path));
    return {};
}

}  // namespace guestmem
