// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/file_system.hpp"

/// Folders: made, listed, renamed without replacing anything, made durable, and removed with all that is below.
///
/// Concepts: what exists whole or not at all is made as a folder under a name that nobody looks for, made durable,
/// and renamed once. rename_new() is the moment at which it exists; a kill -9 leaves the draft or the whole.
/// Contract: the last part of a path is never followed: a link there is an error (Errc::invalid_argument), also where
/// the path ends in "/" or "/.", and ".." is refused as the last part. Links on the way are followed: the way to the
/// store is the caller's. Below the folder of remove_tree() every name is looked up in a descriptor of its folder, so
/// one that is swapped for a link leads nowhere else. It looks at the whole tree first: one that is too deep, too
/// large or holds another file system stays as it is. Any later error leaves a part. A power cut keeps what was
/// synced: the files, then the folder that names them, then after the rename the folders of both names.
/// Threads: any.
/// Limits: remove_tree() takes max_tree_entries names, and folders in folders as deep as it is told. It holds one
/// descriptor for each level and two more.
/// Cost: list_folder() takes one call more for each name (its kind). sync_folder() and sync_file() wait for the disk.
/// Example:
///     GM_TRY(make_folder("store/.draft", 0700));
///     const Fd ram = GM_TRY(create_file("store/.draft/ram", 0600));
///     ...
///     GM_TRY(sync_file(ram));
///     GM_TRY(sync_folder("store/.draft"));
///     GM_TRY(rename_new("store/.draft", "store/web"));
///     GM_TRY(sync_folder("store"));
/// Known holes: a name that is made or removed while its folder is listed may be missing. A second mount of the same
/// file system is not told from a folder. Between the two calls of make_folder() the mode is narrower than asked, and
/// a kill -9 there leaves it so. After a sync that failed, the kernel may call lost pages clean: a second sync proves
/// nothing, what was written has to be written again. File systems that cannot sync a folder say so by an error.

namespace guestmem {

/// One name in a folder. A link, a socket and a pipe are FileKind::other.
struct FolderEntry {
    std::string name;
    FileKind kind = FileKind::other;

    friend bool operator==(const FolderEntry&, const FolderEntry&) = default;
};

/// Opens a folder for reading.
[[nodiscard]] Result<Fd> open_folder(const std::string& path);

/// Makes a folder that was not there, with exactly this mode (at most 0777), whatever the umask: not the one of
/// host.hpp, which takes one that is there.
[[nodiscard]] Result<void> make_folder(const std::string& path, std::uint32_t mode);

/// What is in a folder but "." and "..", sorted by name; more than `limit` names are an error (Errc::out_of_range).
[[nodiscard]] Result<std::vector<FolderEntry>> list_folder(const std::string& path, std::size_t limit);

/// Renames a file or folder to a name that is free: one that is taken is an error (Errc::already_exists) and stays.
/// A file system or kernel that cannot (RENAME_NOREPLACE) is an error too (Errc::unsupported): looking first and
/// renaming then could replace what somebody made in between.
[[nodiscard]] Result<void> rename_new(const std::string& from, const std::string& to);

/// Removes an empty folder; one that is not empty is an error with os_error() ENOTEMPTY.
[[nodiscard]] Result<void> remove_folder(const std::string& path);

/// More files than a template has by far: names that remove_tree() takes in one tree.
inline constexpr std::size_t max_tree_entries = 4096;

/// Removes a folder and all in it. `max_depth` is how deep folders are nested: 0 is a folder without folders in it.
[[nodiscard]] Result<void> remove_tree(const std::string& path, int max_depth = 3);

/// Waits until the names in a folder are on the disk.
[[nodiscard]] Result<void> sync_folder(const std::string& path);
/// Waits until the bytes and the size of a file are on the disk.
[[nodiscard]] Result<void> sync_file(FdView fd);

}  // namespace guestmem
