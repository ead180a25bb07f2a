// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// The service manager's descriptors: those it passes at the start, and its store that outlives the process.
///
/// Concepts: systemd passes descriptors from number 3 on, with $LISTEN_FDS, $LISTEN_PID and $LISTEN_FDNAMES: sockets
/// that it listens on for the service, and whatever an earlier process of the service has stored. Storing is a
/// datagram to $NOTIFY_SOCKET with FDSTORE=1. The words are those of sd_notify(3) and sd_listen_fds(3), said here
/// without systemd's library: the program starts without it, and hosts need not have it.
/// Contract: take_passed_fds() takes what is meant for this process, once: the variables are unset, the descriptors
/// close-on-exec and owned; after an error those that were there are closed.
/// Stored ones are not polled (FDPOLL=0): one that hangs up stays until it is removed. Storing returns when the
/// manager's socket has the datagram: the descriptor survives this process from here on. What the manager does with it
/// (its limit may be reached) is not told. wait_for_manager() returns when it has worked on everything before. While
/// too many descriptors of this user are in flight, both are errors (timed_out) after a few milliseconds.
/// Threads: one at a time.
/// Limits: $NOTIFY_SOCKET is a path or an abstract name of AF_UNIX. Names of descriptors are letters that are
/// printable, without ':'; all names of one start are one string in the environment: max_passed_names_bytes. The number
/// is the unit's FileDescriptorStoreMax=, which systemd 254 and later tell.
/// Cost: four system calls for each store or removal. systemd compares a new descriptor with each one it has.
/// Known holes: a manager that does not read its socket makes these calls wait, without a limit. systemd passes over
/// a descriptor of an open file that it has stored under another name.

namespace guestmem {

/// One string of the environment: 32 pages of 4 KiB (MAX_ARG_STRLEN), of which the variable's name takes its part.
inline constexpr std::size_t max_passed_names_bytes = 128 * 1024 - sizeof "LISTEN_FDNAMES=";

struct PassedFd {
    std::string name;
    Fd fd;
};
[[nodiscard]] Result<std::vector<PassedFd>> take_passed_fds();

/// Tells the manager that asked ($NOTIFY_SOCKET) that this process is ready, or is stopping. Nothing happens when
/// nobody asked.
[[nodiscard]] Result<void> notify_ready(const std::string& status);
void notify_stopping();

/// Whether somebody reads notifications of this process.
[[nodiscard]] bool has_service_manager();
/// How many descriptors it stores, where it says so: $FDSTORE, of systemd 254 and later.
[[nodiscard]] std::optional<std::uint64_t> descriptor_store_limit();

[[nodiscard]] Result<void> store_descriptor(const std::string& name, FdView fd);
/// All with that name; none is no error.
[[nodiscard]] Result<void> remove_stored_descriptors(const std::string& name);
[[nodiscard]] Result<void> wait_for_manager(int timeout_ms);

}  // namespace guestmem
