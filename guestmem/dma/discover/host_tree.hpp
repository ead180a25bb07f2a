// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/dma/discover/tar_archive.hpp"

/// A machine's files, read-only: the machine itself, a captured folder, a captured archive.
///
/// Concepts: whoever reads sysfs, /proc and firmware tables asks a HostTree, so that a machine that somebody sent and
/// a machine that a test made are read as the live one is.
/// Contract: paths are relative to the root, with or without "/" in front. Symbolic links are followed within the
/// tree and never leave it: an absolute target begins at the root, ".." at the root stays there. What is not there,
/// and a link that leads nowhere, is nothing and no error; one that runs in a circle is an error, and so is what may
/// not be read (Errc::permission_denied). Only ordinary files are read.
/// Threads: one at a time: the folder of the last path is remembered.
/// Limits: archives of max_host_archive_bytes, paths of 4095 bytes, 40 links on a path.
/// Cost: sys/file_tree.hpp for folders; an archive is read once into memory, and each path costs a search in it.
/// Example:
///     const auto tree = GM_TRY(open_host_tree("/"));
///     const auto text = GM_TRY(tree->read("proc/cmdline", 4096));
///     if (text) ...
/// Known holes: archives that are compressed are refused, with the name of what unpacks them.

namespace guestmem::dma {

inline constexpr std::size_t max_host_archive_bytes = std::size_t{256} << 20;

class HostTree {
public:
    HostTree() = default;
    HostTree(const HostTree&) = delete;
    HostTree& operator=(const HostTree&) = delete;
    virtual ~HostTree() = default;

    /// All bytes of a file; more than `limit_bytes` are an error (Errc::out_of_range).
    [[nodiscard]] virtual Result<std::optional<std::string>> read(std::string_view path,
                                                                  std::size_t limit_bytes) = 0;
    /// As it stands in the link, which may lead nowhere; nothing too when the name is no link.
    [[nodiscard]] virtual Result<std::optional<std::string>> link_target(std::string_view path) = 0;
    /// Names in a folder, sorted; none when there is no such folder. More than `limit` are an error.
    [[nodiscard]] virtual Result<std::vector<std::string>> list(std::string_view folder,
                                                                std::size_t limit) = 0;
    [[nodiscard]] virtual Result<bool> exists(std::string_view path) = 0;
    /// The machine that this program runs on.
    [[nodiscard]] virtual bool is_live() const { return false; }
};

/// "/" is the live machine; another folder, or else a file, is a captured one.
[[nodiscard]] Result<std::unique_ptr<HostTree>> open_host_tree(const std::string& root);
[[nodiscard]] std::unique_ptr<HostTree> host_tree_of(TarArchive archive);

}  // namespace guestmem::dma
