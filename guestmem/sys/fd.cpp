// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/fd.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

#include "guestmem/sys/faults.hpp"

namespace guestmem {

void Fd::reset() noexcept {
    if (number_ >= 0) ::close(std::exchange(number_, -1));
}

Result<Fd> Fd::duplicate() const {
    const int number = checked_call(SysCall::dup, [&] { return ::fcntl(number_, F_DUPFD_CLOEXEC, 0); });
    if (number < 0) return Error::from_errno(errno, fmt::format("duplicate descriptor {}", number_));
    return Fd{number};
}

Result<Fd> open_file(const std::string& path, OpenMode mode) {
    int flags = O_CLOEXEC | O_NOCTTY;
    switch (mode) {
        case OpenMode::read: flags |= O_RDONLY; break;
        case OpenMode::read_write: flags |= O_RDWR; break;
        case OpenMode::create_exclusive: flags |= O_RDWR | O_CREAT | O_EXCL; break;
    }
    const int number = checked_call(SysCall::open, [&] { return ::open(path.c_str(), flags, 0600); });
    if (number < 0) return Error::from_errno(errno, fmt::format("open {}", path));
    return Fd{number};
}

Result<std::string> read_text_file(const std::string& path, std::size_t limit_bytes) {
    const Fd file = GM_TRY(open_file(path, OpenMode::read));
    std::string text;
    // One byte more than allowed tells a file at the limit from a file beyond it, also where stat says 0 (proc).
    std::string chunk(64 * 1024, '\0');
    for (;;) {
        const ssize_t count = checked_call(
            SysCall::read, [&] { return ::read(file.view().number(), chunk.data(), chunk.size()); });
        if (count < 0) return Error::from_errno(errno, fmt::format("read {}", path));
        if (count == 0) return text;
        text.append(chunk, 0, static_cast<std::size_t>(count));
        if (text.size() > limit_bytes)
            return Error{
                Errc::out_of_range,
                fmt::format("read {}: the file is larger than the limit of {} bytes", path, limit_bytes)};
    }
}

Result<void> write_text_file(const std::string& path, std::string_view text) {
    const std::string draft = fmt::format("{}.{}.new", path, ::getpid());
    ::unlink(draft.c_str());  // left by a killed process that had our number
    const Fd file = GM_TRY(open_file(draft, OpenMode::create_exclusive));
    const auto abandon = [&](std::string_view what, int os_error) {
        ::unlink(draft.c_str());
        return Error::from_errno(os_error, fmt::format("{} {}", what, path));
    };
    while (!text.empty()) {
        const ssize_t count = checked_call(
            SysCall::write, [&] { return ::write(file.view().number(), text.data(), text.size()); });
        if (count < 0) return abandon("write", errno);
        text.remove_prefix(static_cast<std::size_t>(count));
    }
    if (checked_call(SysCall::fchmod, [&] { return ::fchmod(file.view().number(), 0644); }) < 0)
        return abandon("set the mode of", errno);
    if (checked_call(SysCall::rename, [&] { return ::rename(draft.c_str(), path.c_str()); }) < 0)
        return abandon("rename to", errno);
    return {};
}

Result<std::size_t> read_some(FdView fd, std::span<std::byte> buffer) {
    const ssize_t count =
        checked_call(SysCall::read, [&] { return ::read(fd.number(), buffer.data(), buffer.size()); });
    if (count < 0) return Error::from_errno(errno, fmt::format("read descriptor {}", fd.number()));
    return static_cast<std::size_t>(count);
}

Result<FileFacts> file_facts(FdView fd) {
    struct stat status{};
    if (checked_call(SysCall::stat, [&] { return ::fstat(fd.number(), &status); }) < 0)
        return Error::from_errno(errno, fmt::format("stat descriptor {}", fd.number()));
    const int flags = checked_call(SysCall::stat, [&] { return ::fcntl(fd.number(), F_GETFL); });
    if (flags < 0) return Error::from_errno(errno, fmt::format("flags of descriptor {}", fd.number()));
    int type = 0;
    socklen_t type_bytes = sizeof type;
    const bool is_socket = S_ISSOCK(status.st_mode);
    if (is_socket && checked_call(SysCall::getsockopt, [&] {
                         return ::getsockopt(fd.number(), SOL_SOCKET, SO_TYPE, &type, &type_bytes);
                     }) < 0)
        return Error::from_errno(errno, fmt::format("type of socket {}", fd.number()));
    return FileFacts{.size_bytes = static_cast<std::uint64_t>(status.st_size),
                     .allocated_bytes = static_cast<std::uint64_t>(status.st_blocks) * 512,
                     .device = status.st_dev,
                     .inode = status.st_ino,
                     .is_regular = S_ISREG(status.st_mode),
                     .is_socket = is_socket,
                     .is_stream = S_ISFIFO(status.st_mode) || type == SOCK_STREAM,
                     .is_direct = (flags & O_DIRECT) != 0,
                     .is_writable = (flags & O_ACCMODE) == O_RDWR};
}

}  // namespace guestmem
