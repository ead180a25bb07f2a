// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/memory_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <optional>

#include "guestmem/base/sizes.hpp"
#include "guestmem/sys/faults.hpp"
#include "guestmem/sys/file_system.hpp"

namespace guestmem {
namespace {

/// NAME_MAX of every Linux file system.
constexpr std::size_t max_file_name_bytes = 255;

Result<struct stat> look_at(FdView file, const std::string& path) {
    struct stat status{};
    if (checked_call(SysCall::stat, [&] { return ::fstat(file.number(), &status); }) < 0)
        return Error::from_errno(errno, fmt::format("look at {}", path));
    return status;
}

/// An error unless nobody but this user can have a say in this file.
Result<void> check_is_ours(const struct stat& status, const std::string& path) {
    if (!S_ISREG(status.st_mode))
        return Error{Errc::invalid_argument, fmt::format("{}: it is no ordinary file", path)};
    if (status.st_uid != ::geteuid())
        return Error{Errc::permission_denied,
                     fmt::format("{}: it belongs to user {}, not to this user ({}), and could be changed by "
                                 "its owner: chown it or name another path",
                                 path, status.st_uid, ::geteuid())};
    if ((status.st_mode & 0022) != 0)
        return Error{
            Errc::permission_denied,
            fmt::format("{}: with mode {:o} others may write it: chmod go-w", path, status.st_mode & 0777)};
    if (status.st_nlink != 1)
        return Error{Errc::permission_denied,
                     fmt::format("{}: it has {} names, and others may lead to it: remove them or name "
                                 "another path",
                                 path, status.st_nlink)};
    return {};
}

Result<void> check_size(std::uint64_t size_bytes, const std::string& path) {
    if (size_bytes != 0 && size_bytes % page_size_bytes == 0 && size_bytes <= (std::uint64_t{1} << 62))
        return {};
    return Error{Errc::invalid_argument,
                 fmt::format("{}: {} bytes are not whole pages of {}", path, size_bytes, page_size_bytes)};
}

/// What is there; nothing when nothing is.
Result<std::optional<Fd>> open_existing(const std::string& path) {
    // A pipe or terminal must not stop us or become ours before it is refused.
    const int flags = O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    Fd file{checked_call(SysCall::open, [&] { return ::open(path.c_str(), flags); })};
    if (file.is_open()) return std::optional{std::move(file)};
    if (errno == ENOENT) return std::optional<Fd>{};
    if (errno == ELOOP)
        return Error{Errc::invalid_argument, ELOOP,
                     fmt::format("{}: it is a link, or leads through too many: name the file itself", path)};
    return Error::from_errno(errno, fmt::format("open {}", path));
}

Result<void> make_ours(FdView file, const std::string& path, std::uint64_t size_bytes) {
    // The umask may have taken away even our own right.
    if (checked_call(SysCall::fchmod, [&] { return ::fchmod(file.number(), 0600); }) < 0)
        return Error::from_errno(errno, fmt::format("set the mode of {}", path));
    GM_TRY_CONTEXT(resize_file(file, size_bytes), path);
    return {};
}

Result<MemoryFile> make_file(const std::string& path, std::uint64_t size_bytes) {
    Fd file = GM_TRY(create_file(path, 0600));
    if (auto made = make_ours(file, path, size_bytes); !made) {
        remove_name_of(path, file);
        return std::move(made).error();
    }
    return MemoryFile{.fd = std::move(file), .was_there = false};
}

}  // namespace

Result<MemoryFile> open_memory_file(const std::string& path, std::uint64_t size_bytes) {
    GM_TRY(check_size(size_bytes, path));
    std::optional<Fd> existing = GM_TRY(open_existing(path));
    if (!existing) return make_file(path, size_bytes);
    const struct stat status = GM_TRY(look_at(*existing, path));
    GM_TRY(check_is_ours(status, path));
    if (status.st_size == 0) {
        GM_TRY(make_ours(*existing, path, size_bytes));
        return MemoryFile{.fd = std::move(*existing), .was_there = false};
    }
    if (static_cast<std::uint64_t>(status.st_size) != size_bytes)
        return Error{Errc::invalid_argument,
                     fmt::format("{}: it has {} bytes, not {}: say that size, move it away or remove it",
                                 path, status.st_size, size_bytes)};
    return MemoryFile{.fd = std::move(*existing), .was_there = true};
}

Result<std::string> shm_path(std::string_view name) {
    const std::string_view rest = name.starts_with('/') ? name.substr(1) : std::string_view{};
    if (rest.empty() || rest == "." || rest == ".." ||
        rest.find_first_of(std::string_view{"/\0", 2}) != rest.npos || rest.size() > max_file_name_bytes)
        return Error{Errc::invalid_argument,
                     fmt::format("shared memory name '{}': it begins with its only '/' and has 1 to {} "
                                 "characters after it",
                                 name, max_file_name_bytes)};
    return fmt::format("/dev/shm/{}", rest);
}

Result<Fd> reopen_read_only(FdView file) {
    const std::string path = fmt::format("/proc/self/fd/{}", file.number());
    Fd reader{
        checked_call(SysCall::open, [&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY); })};
    if (!reader.is_open())
        return Error::from_errno(errno, fmt::format("open {} again for reading only", path));
    return reader;
}

void remove_name_of(const std::string& path, FdView file) noexcept {
    struct stat named{};
    struct stat ours{};
    if (::lstat(path.c_str(), &named) != 0 || ::fstat(file.number(), &ours) != 0) return;
    if (named.st_dev == ours.st_dev && named.st_ino == ours.st_ino) ::unlink(path.c_str());
}

}  // namespace guestmem
