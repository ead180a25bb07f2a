// SPDX-License-Identifier: Apache-2.0
#include "guestmem/sys/owned_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "guestmem/sys/faults.hpp"

namespace guestmem {

Result<Ownership> ownership_of(FdView fd) {
    struct stat status{};
    if (checked_call(SysCall::stat, [&] { return ::fstat(fd.number(), &status); }) < 0)
        return Error::from_errno(errno, fmt::format("ask for the owner of descriptor {}", fd.number()));
    return Ownership{
        .owner = status.st_uid,
        .group = status.st_gid,
        .permissions = status.st_mode & 0777,
        .modified_ns = std::int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec,
        .size_bytes = static_cast<std::uint64_t>(status.st_size)};
}

Result<Fd> open_in(FdView folder, const std::string& name) {
    if (name.empty() || name.contains('/') || name == "..")
        return Error{Errc::invalid_argument, fmt::format("open '{}': no part of a path", name)};
    // A pipe without a writer must not stop us before it is refused.
    const int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY;
    Fd file{checked_call(SysCall::open, [&] { return ::openat(folder.number(), name.c_str(), flags); })};
    if (!file.is_open()) {
        if (errno == ELOOP)
            return Error{Errc::corrupt, ELOOP,
                         fmt::format("open {}: it is a link, and must be a file", name)};
        return Error::from_errno(errno, fmt::format("open {}", name));
    }
    const FileFacts facts = GM_TRY_CONTEXT(file_facts(file), name);
    if (!facts.is_regular) return Error{Errc::corrupt, fmt::format("open {}: it is no ordinary file", name)};
    return file;
}

}  // namespace guestmem
