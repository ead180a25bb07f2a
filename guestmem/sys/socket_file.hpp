// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// Whether the file of a listening Unix socket is still the one that it was bound to.
///
/// Concepts: a socket is reached by its file. When that is removed, or another process puts its own in its place, the
/// socket listens on and nobody can come. The kernel tells the file of a socket to whoever asks by netlink
/// (sock_diag(7)); fstat() of the socket is about something else.
/// Contract: touches nothing and connects to nobody. Where the kernel does not tell (no CONFIG_UNIX_DIAG, a filter that
/// knows Unix sockets only, a socket of another network namespace), a socket at the path is `same`.
/// Limits: the kernel tells 32 bits of the file's number and of its device.
/// Threads: any. Cost: five system calls.

namespace guestmem {

enum class SocketFile : std::uint8_t {
    same,
    gone,     ///< there is nothing
    another,  ///< another socket's, or no socket
};

[[nodiscard]] Result<SocketFile> look_at_socket_file(FdView socket, const std::string& path);

}  // namespace guestmem
