// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"

/// The control group of the process at the other end of a Unix socket.
///
/// Concepts: the kernel keeps the number of the process that connected. A number is given again once its process has
/// been reaped, to whoever comes next; a pidfd (SO_PEERPIDFD) stays with the process.
/// Contract: the path in the unified hierarchy ("/machine.slice/linux"), empty where the process has none there. A
/// process that has ended is an error (ESRCH), whoever has its number by then. It is the group at the time of the call.
/// Threads: any.
/// Limits: Linux 6.5. On an older kernel the process that has the number is taken where its user and group are those of
/// the peer.
/// Known holes: on an older kernel a process of the same user and group that has got the number is taken for the peer.
/// A process that has given its connection to another one is still the peer.
/// Example:
///     const std::string group = GM_TRY(peer_cgroup(stream.view()));

namespace guestmem {

[[nodiscard]] Result<std::string> peer_cgroup(FdView socket);

}  // namespace guestmem
