// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/filter_program.hpp"

/// The system calls that are left to the threads of a running virtual machine, by kind of thread.
///
/// Concepts: a machine's threads do different things, and each kind has an allow list of its own:
///
///     kind       beside memory, clocks, locks, and what open descriptors are read, written and waited for by
///     processor  KVM_RUN and the requests of devices; attaching to a share service; ringing (Ringer)
///     clock      the requests of devices
///     watch      the requests of devices; attaching again
///     service    files opened for reading; memory files made; the service's connections; its threads
///     main       the requests of devices; attaching; connections, timers and signals of its loop, and its threads; the
///                terminal's mode; removing the machine's sockets
///
/// The requests of devices are memory slots, irqfds, ioeventfds, routes and messages; main and processors also read
/// registers, main also dirty logs. Attaching is a socket of AF_UNIX, a connection, and messages with descriptors. No
/// other request of KVM is left to anybody: no processor, machine or device is made any more.
/// Contract: no kind starts a program or a process, traces or looks into one, makes executable memory, has a socket of
/// another family, gives itself rights, or signals another process; none but `service` opens files, and that one only
/// for reading. The threads that `service` and `main` begin inherit their filters.
/// Threads: each installs its own filter, once the machine is made.
/// Limits: a path is out of sight of a filter: which socket is connected to is the services' to allow, which ask the
/// kernel who calls; sandbox.hpp says what else keeps files away.
/// Cost: as filter_program.hpp; KVM_RUN is what a processor's filter looks at first.

namespace guestmem {

enum class ThreadKind : std::uint8_t { processor, clock, watch, service, main };
inline constexpr std::size_t count_thread_kinds = 5;

[[nodiscard]] std::string_view to_string(ThreadKind kind);

[[nodiscard]] Result<FilterProgram> make_thread_filter(ThreadKind kind,
                                                       FilterAnswer answer = FilterAnswer::kill);

}  // namespace guestmem
