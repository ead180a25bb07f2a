// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/file_tree.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "guestmem/sys/faults.hpp"

namespace guestmem {
namespace {

constexpr std::size_t list_buffer_bytes = 16 * 1024;
constexpr std::size_t read_chunk_bytes = 16 * 1024;

bool is_absent(int os_error) { return os_error == ENOENT || os_error == ENOTDIR; }

/// The path without slashes around it.
Result<std::string_view> plain_path(std::string_view path) {
    while (path.starts_with('/')) path.remove_prefix(1);
    while (path.ends_with('/')) path.remove_suffix(1);
    if (path.size() > max_tree_path_bytes || path.contains('\0'))
        return Error{Errc::invalid_argument,
                     fmt::format("a path of {} bytes: at most {}, and no zero byte in it", path.size(),
                                 max_tree_path_bytes)};
    return path;
}

/// A bus, a device, a folder in it.
constexpr std::size_t max_open_folders = 4;

struct SplitPath {
    std::string_view folder;
    std::string_view name;
};

SplitPath split(std::string_view path) {
    const std::size_t slash = path.rfind('/');
    if (slash == std::string_view::npos) return {.folder = {}, .name = path};
    return {.folder = path.substr(0, slash), .name = path.substr(slash + 1)};
}

bool is_below(std::string_view path, std::string_view folder) {
    return folder.empty() || (path.starts_with(folder) && path.substr(folder.size()).starts_with('/'));
}

Result<std::string> read_opened(FdView file, std::string_view path, std::size_t limit_bytes) {
    struct stat status{};
    if (checked_call(SysCall::stat, [&] { return ::fstat(file.number(), &status); }) < 0)
        return Error::from_errno(errno, fmt::format("look at {}", path));
    if (!S_ISREG(status.st_mode)) return Error{Errc::corrupt, fmt::format("{}: no ordinary file", path)};
    const auto size_bytes = static_cast<std::size_t>(status.st_size);
    std::string text;
    std::size_t filled = 0;
    for (;;) {
        const std::size_t wanted =
            size_bytes > filled && size_bytes <= limit_bytes ? size_bytes - filled : read_chunk_bytes;
        text.resize(filled + wanted);
        const ssize_t count =
            checked_call(SysCall::read, [&] { return ::read(file.number(), text.data() + filled, wanted); });
        if (count < 0) return Error::from_errno(errno, fmt::format("read {}", path));
        filled += static_cast<std::size_t>(count);
        if (filled > limit_bytes)
            return Error{Errc::out_of_range,
                         fmt::format("{}: larger than the limit of {} bytes", path, limit_bytes)};
        // Where the size says the truth its end is known; sysfs and proc say 4096 or 0 of texts.
        if (count == 0 || filled == size_bytes) {
            text.resize(filled);
            return text;
        }
    }
}

}  // namespace

Result<FileTree> FileTree::open(const std::string& root) {
    const int number =
        checked_call(SysCall::open, [&] { return ::open(root.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC); });
    if (number < 0) return Error::from_errno(errno, fmt::format("open folder '{}'", root));
    return FileTree{Fd{number}, root != "/"};
}

Result<std::optional<Fd>> FileTree::open_below(const std::string& path, int flags) {
    open_how how{};
    how.flags = static_cast<unsigned>(flags | O_CLOEXEC);
    how.resolve = is_contained_ ? RESOLVE_IN_ROOT : 0;
    const char* const name = path.empty() ? "." : path.c_str();
    Fd opened{static_cast<int>(checked_call(SysCall::open, [&]() -> long {
        if (!is_contained_) return ::openat(root_.view().number(), name, flags | O_CLOEXEC);
        return ::syscall(SYS_openat2, root_.view().number(), name, &how, sizeof how);
    }))};
    if (opened.is_open()) return std::optional<Fd>{std::move(opened)};
    if (is_absent(errno)) return std::optional<Fd>{};
    if (errno == ENOSYS)
        return Error{Errc::unsupported, ENOSYS,
                     fmt::format("open {}: a folder as a root needs openat2, Linux 5.6: name a .tar", path)};
    return Error::from_errno(errno, fmt::format("open {}", path));
}

/// In the folder above it if that is open, which saves the kernel the way there.
Result<std::optional<Fd>> FileTree::open_folder(std::string_view folder, int flags) {
    const auto [above, name] = split(folder);
    const bool is_step =
        !open_.empty() && open_.back().name == above && !name.empty() && name != "." && name != "..";
    if (!is_step) return open_below(std::string{folder}, flags | O_DIRECTORY);
    const std::string name_text{name};
    // Whose root is the machine may go where links lead.
    const int all_flags = flags | O_DIRECTORY | O_CLOEXEC | (is_contained_ ? O_NOFOLLOW : 0);
    Fd opened{checked_call(SysCall::open, [&] {
        return ::openat(open_.back().fd.view().number(), name_text.c_str(), all_flags);
    })};
    if (opened.is_open()) return std::optional<Fd>{std::move(opened)};
    if (errno == ENOENT) return std::optional<Fd>{};
    // A link is no folder: it is followed by the look-up that cannot leave.
    return open_below(std::string{folder}, flags | O_DIRECTORY);
}

/// Closes all but it and those above it.
void FileTree::leave_others(std::string_view folder) {
    while (!open_.empty() && open_.back().name != folder && !is_below(folder, open_.back().name))
        open_.pop_back();
}

void FileTree::keep(std::string_view folder, Fd opened) {
    if (open_.size() == max_open_folders) open_.erase(open_.begin());
    open_.push_back({.name = std::string{folder}, .fd = std::move(opened)});
}

/// Whether there is such a folder; the last of open_ is it then.
Result<bool> FileTree::enter(std::string_view folder) {
    leave_others(folder);
    if (!open_.empty() && open_.back().name == folder) return true;
    auto opened = GM_TRY(open_folder(folder, O_PATH));
    if (!opened) return false;
    keep(folder, *std::move(opened));
    return true;
}

Result<std::optional<std::string>> FileTree::read(std::string_view path, std::size_t limit_bytes) {
    const std::string_view plain = GM_TRY(plain_path(path));
    const auto [folder, name] = split(plain);
    if (!GM_TRY(enter(folder))) return std::optional<std::string>{};
    constexpr int flags = O_RDONLY | O_NONBLOCK | O_NOCTTY;
    const std::string name_text{name};
    std::optional<Fd> file;
    // A link, and ".." too, is the business of the look-up that cannot leave.
    int os_error = ELOOP;
    if (!name.empty() && name != "..") {
        Fd opened{checked_call(SysCall::open, [&] {
            return ::openat(open_.back().fd.view().number(), name_text.c_str(),
                            flags | O_NOFOLLOW | O_CLOEXEC);
        })};
        os_error = opened.is_open() ? 0 : errno;
        if (opened.is_open()) file = std::move(opened);
    }
    if (is_absent(os_error)) return std::optional<std::string>{};
    if (os_error == ELOOP) file = GM_TRY(open_below(std::string{plain}, flags));
    if (os_error != 0 && os_error != ELOOP) return Error::from_errno(os_error, fmt::format("open {}", plain));
    if (!file) return std::optional<std::string>{};
    return std::optional<std::string>{GM_TRY(read_opened(*file, plain, limit_bytes))};
}

Result<std::optional<std::string>> FileTree::link_target(std::string_view path) {
    const std::string_view plain = GM_TRY(plain_path(path));
    const auto [folder, name] = split(plain);
    if (name.empty() || !GM_TRY(enter(folder))) return std::optional<std::string>{};
    const std::string name_text{name};
    std::array<char, max_tree_path_bytes + 1> target;
    const ssize_t count = checked_call(SysCall::readlink, [&] {
        return ::readlinkat(open_.back().fd.view().number(), name_text.c_str(), target.data(), target.size());
    });
    if (count < 0) {
        if (is_absent(errno) || errno == EINVAL) return std::optional<std::string>{};
        return Error::from_errno(errno, fmt::format("read the link {}", plain));
    }
    if (static_cast<std::size_t>(count) == target.size())
        return Error{Errc::out_of_range,
                     fmt::format("the link {} is longer than {} bytes", plain, max_tree_path_bytes)};
    return std::optional<std::string>{std::string{target.data(), static_cast<std::size_t>(count)}};
}

Result<std::vector<std::string>> FileTree::list(std::string_view folder, std::size_t limit) {
    const std::string plain{GM_TRY(plain_path(folder))};
    std::vector<std::string> names;
    // Another one than that which may be open: its names are read from the first on.
    leave_others(plain);
    if (!open_.empty() && open_.back().name == plain) open_.pop_back();
    std::optional<Fd> opened = GM_TRY(open_folder(plain, O_RDONLY));
    if (!opened) return names;
    std::array<char, list_buffer_bytes> buffer;
    for (;;) {
        const ssize_t filled = checked_call(SysCall::getdents, [&] {
            return ::getdents64(opened->view().number(), buffer.data(), buffer.size());
        });
        if (filled < 0) return Error::from_errno(errno, fmt::format("list {}", plain));
        if (filled == 0) break;
        std::uint16_t record_bytes = 0;
        for (std::size_t at = 0; at < static_cast<std::size_t>(filled); at += record_bytes) {
            const char* record = &buffer[at];
            std::memcpy(&record_bytes, record + offsetof(dirent64, d_reclen), sizeof record_bytes);
            const std::string_view name{record + offsetof(dirent64, d_name)};
            if (name == "." || name == "..") continue;
            if (names.size() == limit)
                return Error{Errc::out_of_range, fmt::format("list {}: more than {} names", plain, limit)};
            names.emplace_back(name);
        }
    }
    keep(plain, *std::move(opened));
    std::ranges::sort(names);
    return names;
}

Result<bool> FileTree::exists(std::string_view path) {
    const std::string plain{GM_TRY(plain_path(path))};
    const std::optional<Fd> opened = GM_TRY(open_below(plain, O_PATH));
    return opened.has_value();
}

}  // namespace guestmem
