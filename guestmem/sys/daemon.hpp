// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// Going to the background only once the service is ready, so that the caller's next command finds it.
///
/// Contract: detach() forks. In the parent it does not return: the parent exits with 0 when the child calls
/// announce_ready(), and with 1 when the child ends first; until then the child's messages still reach the
/// terminal. A parent that was killed before is an error of announce_ready(). The working folder stays, since the
/// relative paths of sockets and of the pid file are needed to remove them. Call it before threads, loops and
/// locks exist.
/// Threads: one at a time.

namespace guestmem {

class BackgroundStart {
public:
    [[nodiscard]] static Result<BackgroundStart> detach();
    /// Lets the parent go, and leaves the terminal: standard streams lead to /dev/null from here on.
    [[nodiscard]] Result<void> announce_ready();

private:
    explicit BackgroundStart(UnixStream parent) : parent_(std::move(parent)) {}
    UnixStream parent_;
};

/// A file with this process's number, removed when the object goes. One that names a process that is alive is an
/// error.
class PidFile {
public:
    PidFile() = default;
    [[nodiscard]] static Result<PidFile> create(const std::string& path);
    PidFile(PidFile&& other) noexcept : path_(std::exchange(other.path_, {})), inode_(other.inode_) {}
    PidFile& operator=(PidFile&& other) noexcept {
        std::swap(path_, other.path_);
        std::swap(inode_, other.inode_);
        return *this;
    }
    PidFile(const PidFile&) = delete;
    PidFile& operator=(const PidFile&) = delete;
    ~PidFile();

private:
    explicit PidFile(std::string path) : path_(std::move(path)) {}
    std::string path_;
    std::uint64_t inode_ = 0;
};

}  // namespace guestmem
