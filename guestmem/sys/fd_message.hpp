// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/socket.h>

#include <span>
#include <vector>

#include "guestmem/sys/fd.hpp"

/// Descriptors in a socket's message (SCM_RIGHTS): for the sockets of this room.
///
/// Contract: put_fds() leaves a message without descriptors as it is. take_fds() owns each descriptor from the first
/// moment, also those that nobody has asked for.
/// Threads: any.
/// Limits: `control` has CMSG_SPACE for the descriptors, is aligned for cmsghdr and outlives the message.

namespace guestmem {

void put_fds(msghdr& header, std::span<unsigned char> control, std::span<const FdView> fds);
void take_fds(msghdr& header, std::vector<Fd>& fds);

}  // namespace guestmem
