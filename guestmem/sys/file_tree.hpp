// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// A folder as if it were the whole file system: files, links and names below it are read, and nothing leads outside.
///
/// Concepts: paths are relative to the root, with or without a "/" in front. A symbolic link is followed as a process
/// whose root folder this is would follow it: absolute targets begin at the root, ".." at the root stays there.
/// Contract: only ordinary files are read; a pipe or a device is an error and is not waited for. What is not there,
/// and a link that leads nowhere, is nothing and no error. The root "/" is the machine itself and asks for no
/// containment.
/// Threads: one at a time.
/// Limits: a path and the target of a link have at most max_tree_path_bytes; the kernel follows 40 links on a path.
/// Cost: the folders of the last path, and the one that was listed last, stay open: several files of one folder take
/// one look-up of the folder, in the one above it if that is open; each file takes four system calls, each link one.
/// Example:
///     FileTree tree = GM_TRY(FileTree::open("/tmp/captured"));
///     const auto text = GM_TRY(tree.read("proc/cmdline", 4096));
///     if (text) ...
/// Known holes: containment needs openat2(2), Linux 5.6: without it a root other than "/" is an error
/// (Errc::unsupported). A folder that is replaced while its path is asked for again is seen as it was.

namespace guestmem {

inline constexpr std::size_t max_tree_path_bytes = 4095;

class FileTree {
public:
    [[nodiscard]] static Result<FileTree> open(const std::string& root);

    /// All bytes of a file; one with more than `limit_bytes` is an error (Errc::out_of_range).
    [[nodiscard]] Result<std::optional<std::string>> read(std::string_view path, std::size_t limit_bytes);
    /// The text of a symbolic link, as it stands there; nothing too when the name is no link.
    [[nodiscard]] Result<std::optional<std::string>> link_target(std::string_view path);
    /// The names in a folder but "." and "..", sorted; none when it is not there, or no folder. More than `limit` are
    /// an error (Errc::out_of_range).
    [[nodiscard]] Result<std::vector<std::string>> list(std::string_view folder, std::size_t limit);
    [[nodiscard]] Result<bool> exists(std::string_view path);

private:
    FileTree(Fd root, bool is_contained) : root_(std::move(root)), is_contained_(is_contained) {}

    [[nodiscard]] Result<std::optional<Fd>> open_below(const std::string& path, int flags);
    [[nodiscard]] Result<std::optional<Fd>> open_folder(std::string_view folder, int flags);
    [[nodiscard]] Result<bool> enter(std::string_view folder);
    void leave_others(std::string_view folder);
    void keep(std::string_view folder, Fd opened);

    struct OpenFolder {
        std::string name;
        Fd fd;
    };

    Fd root_;
    bool is_contained_ = true;
    std::vector<OpenFolder> open_;  ///< each is below the one before, at most max_open_folders
};

}  // namespace guestmem
