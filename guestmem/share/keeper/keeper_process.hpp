// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/share/keeper/keeper_session.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/seqpacket_socket.hpp"

/// The process that does nothing but hold a service's descriptors, and gives them to the next instance.
///
/// Concepts: it serves one service at a time. Who connects is asked of the kernel; it gets all descriptors, and then
/// gives, replaces and takes back its own. When it dies, whatever it has sent is taken, and the next one is
/// served. keeper_link.hpp is the service's side, docs/protocols/keeper.md the protocol.
/// Contract: root, the keeper's own user and `users` may be the service. One that comes while another is served is told
/// whose number that has. A malformed message ends its connection, and so does a service that does not take for
/// `patience` what it is given; nothing else does. What is held stays.
/// The keeper ends by end() of a service, SIGTERM or SIGINT; it removes its socket's file, and what it held is gone. It
/// ignores SIGHUP, which services take as "reload", and which may be sent to all processes of one name.
/// Versions: a keeper that a service of an earlier program version started goes on under a later one: the wire has a
/// version, which the keeper says first. A later program takes over from keepers of all earlier versions; a program
/// that meets a keeper of a later version is refused by itself (Errc::unsupported) and changes nothing. To replace the
/// program of the keeper itself, end it by SIGTERM while the service lives: the service starts another and fills it.
/// Threads: run_keeper() has a thread, or a process, of its own; start_keeper() one at a time.
/// Limits: `capacity` descriptors, or what RLIMIT_NOFILE (raised to its hard limit) leaves.
/// Cost: two descriptors of its own, 80 bytes for each one held. It makes some system calls for each message and none
/// between them.
/// Known holes: a descriptor that was forgotten while its service died may have its last close here; where a peer has
/// made that close wait (SO_LINGER, a file of a FUSE server), the keeper waits with it. It stays in the cgroup of who
/// started it: under systemd the descriptor store is the keeper (systemd_store.hpp).

namespace guestmem::share {

struct KeeperProcessOptions {
    std::string path;                       ///< of its socket; relative ones are made absolute
    std::vector<std::uint32_t> users = {};  ///< who may be the service besides root and the own user
    std::chrono::milliseconds patience{10'000};
    std::size_t capacity = max_kept_fds;
    /// Gives up capabilities that its starter still has; not where the starter has none, and may be under a filter that
    /// forbids to ask.
    bool drops_privileges = true;
};

/// Returns at the end, with its socket's file removed; `stop` readable is SIGTERM.
[[nodiscard]] Result<void> run_keeper(SeqpacketListener listener, const KeeperProcessOptions& options,
                                      FdView stop);

/// Starts one, detached, and returns its process number when it listens. An error (busy) where one listens already.
[[nodiscard]] Result<std::int32_t> start_keeper(const KeeperProcessOptions& options);

}  // namespace guestmem::share
