// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "guestmem/base/result.hpp"

/// Giving up what a service does not need: the user it was started as, capabilities, and being looked into.
///
/// Contract: drop_privileges() makes this process that user with its groups, without any capability and without a
/// way back, and calls harden_process(). An empty name leaves everything as it is. A process that is that user
/// already is only hardened and loses its capabilities. An error may leave a part done: the caller ends.
/// harden_process(): no program that is started gets more rights (no_new_privs), no other process of this user looks
/// into this one or reads its descriptors (not dumpable), and nothing of its memory goes into a core file.
/// Threads: before any other one begins: capabilities belong to a thread, and only user and groups are changed for
/// all.
/// Limits: capabilities stay in the bounding set where this process has no CAP_SETPCAP; nothing can bring them
/// back, since no program that is started gets more rights.
/// Example:
///     GM_TRY(drop_privileges(config.user));
/// Known holes: descriptors that are open stay open, with the rights that they had.

namespace guestmem {

/// `user`: a name or a number of the host's users, not root.
[[nodiscard]] Result<void> drop_privileges(const std::string& user);

/// The first half of it, for a service that has still to make things: this process becomes the user, so that what it
/// makes is that user's, and keeps what it takes to give sockets to others (CAP_CHOWN, CAP_FOWNER, CAP_DAC_OVERRIDE)
/// until drop_privileges(). An empty name, or the own user, changes nothing.
[[nodiscard]] Result<void> take_user(const std::string& user);

[[nodiscard]] Result<void> harden_process();

/// The calling thread, and those that it begins, have no capability, and none can come back: not by a program that is
/// started either. The user stays: who is root still owns root's files.
[[nodiscard]] Result<void> drop_thread_capabilities();

/// All descriptors from `first` on are closed when a program is started. Errc::unsupported before Linux 5.11.
[[nodiscard]] Result<void> close_descriptors_on_exec(unsigned first);

}  // namespace guestmem
