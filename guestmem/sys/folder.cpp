// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/folder.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <utility>

#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/host.hpp"

namespace guestmem {
namespace {

/// What getdents64(2) fills at once: some hundred names.
constexpr std::size_t list_buffer_bytes = 32 * 1024;

/// The path without "/" and "/." behind its last part, where they make the kernel follow a link of that name.
Result<std::string> plain_path(const std::string& what, const std::string& path) {
    if (path.contains('\0')) return Error{Errc::invalid_argument, fmt::format("{}: a zero byte in it", what)};
    std::string plain = path;
    while ((plain.size() > 1 && plain.ends_with('/')) || plain.ends_with("/.")) plain.pop_back();
    if (plain.empty() || plain == ".." || plain.ends_with("/.."))
        return Error{Errc::invalid_argument, fmt::format("{}: its last part has to be a name", what)};
    return plain;
}

/// The error of a call that wants a folder.
Error folder_error(int os_error, const std::string& what) {
    if (os_error == ENOTDIR || os_error == ELOOP)
        return Error{Errc::invalid_argument, os_error,
                     fmt::format("{}: no folder, or a link, which is not followed", what)};
    return Error::from_errno(os_error, what);
}

/// Opens a folder by its name in another one; AT_FDCWD takes a path.
Result<Fd> open_below(int folder, const std::string& name, int flags, const std::string& what) {
    const int number = checked_call(SysCall::open, [&] {
        return ::openat(folder, name.c_str(), flags | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    });
    if (number < 0) return folder_error(errno, what);
    return Fd{number};
}

Result<void> unlink_below(int folder, const std::string& name, int flags, const std::string& what) {
    if (checked_call(SysCall::unlink, [&] { return ::unlinkat(folder, name.c_str(), flags); }) < 0)
        return folder_error(errno, what);
    return {};
}

FileKind kind_of(mode_t mode) {
    if (S_ISREG(mode)) return FileKind::regular;
    if (S_ISDIR(mode)) return FileKind::folder;
    if (S_ISCHR(mode)) return FileKind::character_device;
    return S_ISBLK(mode) ? FileKind::block_device : FileKind::other;
}

/// Adds a name with its kind; one that is gone since it was read is left out.
Result<void> add_entry(FdView folder, std::string name, const std::string& what,
                       std::vector<FolderEntry>& entries) {
    struct stat status{};
    // Not d_type: some file systems leave it open.
    if (checked_call(SysCall::stat, [&] {
            return ::fstatat(folder.number(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW);
        }) < 0) {
        if (errno == ENOENT) return {};
        return Error::from_errno(errno, fmt::format("{}: look at '{}'", what, name));
    }
    entries.push_back({.name = std::move(name), .kind = kind_of(status.st_mode)});
    return {};
}

/// All names of a folder whose descriptor stands at its beginning, in the kernel's order; `limit` holds for them and
/// the `count_names` before them.
Result<std::vector<FolderEntry>> read_entries(FdView folder, std::size_t limit, std::size_t count_names,
                                              const std::string& what) {
    std::vector<FolderEntry> entries;
    std::vector<char> buffer(list_buffer_bytes);
    for (;;) {
        const ssize_t filled = checked_call(
            SysCall::getdents, [&] { return ::getdents64(folder.number(), buffer.data(), buffer.size()); });
        if (filled < 0) return Error::from_errno(errno, what);
        if (filled == 0) return entries;
        std::uint16_t record_bytes = 0;
        for (std::size_t at = 0; at < static_cast<std::size_t>(filled); at += record_bytes) {
            const char* record = &buffer[at];
            std::memcpy(&record_bytes, record + offsetof(dirent64, d_reclen), sizeof record_bytes);
            const std::string_view name{record + offsetof(dirent64, d_name)};
            if (name == "." || name == "..") continue;
            if (++count_names > limit)
                return Error{Errc::out_of_range, fmt::format("{}: more than {} names", what, limit)};
            GM_TRY(add_entry(folder, std::string{name}, what, entries));
        }
    }
}

/// Goes through a tree: looks at it first, removes it then.
class TreeWalk {
public:
    TreeWalk(int max_depth, std::uint64_t device, bool is_removing)
        : max_depth_(max_depth), device_(device), is_removing_(is_removing) {}

    /// All below a folder, whose descriptor stands at its beginning.
    Result<void> run(FdView folder, const std::string& path, int depth) {
        const std::string what = fmt::format("remove {}", path);
        const auto entries = GM_TRY(read_entries(folder, max_tree_entries, count_entries_, what));
        count_entries_ += entries.size();
        for (const FolderEntry& entry : entries) {
            const bool is_folder = entry.kind == FileKind::folder;
            const std::string below = fmt::format("{}/{}", path, entry.name);
            if (is_folder) GM_TRY(run_below(folder, entry.name, below, depth));
            if (is_removing_)
                GM_TRY(unlink_below(folder.number(), entry.name, is_folder ? AT_REMOVEDIR : 0,
                                    fmt::format("remove {}", below)));
        }
        return {};
    }

private:
    Result<void> run_below(FdView folder, const std::string& name, const std::string& path, int depth) {
        const std::string what = fmt::format("remove {}", path);
        if (depth >= max_depth_)
            return Error{Errc::out_of_range,
                         fmt::format("{}: folders are nested deeper than {}", what, max_depth_)};
        const Fd below = GM_TRY(open_below(folder.number(), name, O_RDONLY, what));
        const FileFacts facts = GM_TRY_CONTEXT(file_facts(below), what);
        if (facts.device != device_)
            return Error{Errc::busy, EBUSY, fmt::format("{}: another file system is mounted there", what)};
        return run(below, path, depth + 1);
    }

    int max_depth_;
    std::uint64_t device_;
    bool is_removing_;
    std::size_t count_entries_ = 0;
};

}  // namespace

Result<Fd> open_folder(const std::string& path) {
    const std::string what = fmt::format("open folder '{}'", path);
    const std::string plain = GM_TRY(plain_path(what, path));
    return open_below(AT_FDCWD, plain, O_RDONLY, what);
}

Result<void> make_folder(const std::string& path, std::uint32_t mode) {
    const std::string what = fmt::format("make folder '{}'", path);
    if (mode > 0777)
        return Error{Errc::invalid_argument,
                     fmt::format("{}: mode {:o} is more than reading, writing and executing", what, mode)};
    const std::string plain = GM_TRY(plain_path(what, path));
    // Narrow first: nobody gets in before the mode is what was asked.
    if (checked_call(SysCall::mkdir, [&] { return ::mkdir(plain.c_str(), mode & 0700U); }) < 0)
        return Error::from_errno(errno, what);
    if (checked_call(SysCall::fchmod,
                     [&] { return ::fchmodat(AT_FDCWD, plain.c_str(), mode, AT_SYMLINK_NOFOLLOW); }) < 0) {
        const int os_error = errno;
        ::rmdir(plain.c_str());
        return Error::from_errno(os_error, fmt::format("{}: set its mode", what));
    }
    return {};
}

Result<std::vector<FolderEntry>> list_folder(const std::string& path, std::size_t limit) {
    const Fd folder = GM_TRY(open_folder(path));
    auto entries = GM_TRY(read_entries(folder, limit, 0, fmt::format("list folder '{}'", path)));
    std::ranges::sort(entries, {}, &FolderEntry::name);
    return entries;
}

Result<void> rename_new(const std::string& from, const std::string& to) {
    const std::string what = fmt::format("rename '{}' to '{}'", from, to);
    const std::string source = GM_TRY(plain_path(what, from));
    const std::string target = GM_TRY(plain_path(what, to));
    const int status = checked_call(SysCall::rename, [&] {
        return ::renameat2(AT_FDCWD, source.c_str(), AT_FDCWD, target.c_str(), RENAME_NOREPLACE);
    });
    if (status == 0) return {};
    if (errno != EINVAL && errno != ENOSYS) return Error::from_errno(errno, what);
    const int os_error = errno;
    if (target.starts_with(source + "/"))
        return Error{Errc::invalid_argument, os_error, fmt::format("{}: that is inside of itself", what)};
    return Error{
        Errc::unsupported, os_error,
        fmt::format("{}: the file system or kernel cannot rename without replacing (RENAME_NOREPLACE)",
                    what)};
}

Result<void> remove_folder(const std::string& path) {
    const std::string what = fmt::format("remove folder '{}'", path);
    const std::string plain = GM_TRY(plain_path(what, path));
    return unlink_below(AT_FDCWD, plain, AT_REMOVEDIR, what);
}

Result<void> remove_tree(const std::string& path, int max_depth) {
    const std::string what = fmt::format("remove '{}' with all in it", path);
    const std::string plain = GM_TRY(plain_path(what, path));
    const std::string name = plain.substr(plain.find_last_of('/') + 1);
    if (name.empty() || name == ".")
        return Error{Errc::invalid_argument, fmt::format("{}: its last part has to be a name", what)};
    if (max_depth < 0)
        return Error{Errc::invalid_argument, fmt::format("{}: a depth of {} is none", what, max_depth)};
    // O_PATH: the folder around it has to be searched, not read. Its own last part may be a link, "/." follows it.
    const Fd parent = GM_TRY(open_below(AT_FDCWD, parent_folder(plain) + "/.", O_PATH, what));
    const Fd top = GM_TRY(open_below(parent.view().number(), name, O_RDONLY, what));
    const std::uint64_t device = GM_TRY_CONTEXT(file_facts(top), what).device;

    GM_TRY(TreeWalk(max_depth, device, false).run(top, plain, 0));
    const Fd again = GM_TRY(open_below(top.view().number(), ".", O_RDONLY, what));
    GM_TRY(TreeWalk(max_depth, device, true).run(again, plain, 0));
    return unlink_below(parent.view().number(), name, AT_REMOVEDIR, what);
}

Result<void> sync_folder(const std::string& path) {
    const Fd folder = GM_TRY(open_folder(path));
    GM_TRY_CONTEXT(sync_file(folder), fmt::format("sync folder '{}'", path));
    return {};
}

Result<void> sync_file(FdView fd) {
    if (checked_call(SysCall::fsync, [&] { return ::fsync(fd.number()); }) < 0)
        return Error::from_errno(errno, fmt::format("sync descriptor {}", fd.number()));
    return {};
}

}  // namespace guestmem
