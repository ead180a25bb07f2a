// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/control/client.hpp"
#include "guestmem/share/ivshmem/client.hpp"
#include "guestmem/share/presence.hpp"
#include "guestmem/share/sender_page.hpp"
#include "guestmem/share/session.hpp"
#include "guestmem/sys/deadline.hpp"
#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/wait_set.hpp"

/// One attach of a session: from the name of a share to a place in it. The border to a service that may lie.
///
/// Contract: attach_link() asks the control socket, questions every descriptor and number of the answer, and takes the
/// ivshmem handshake to its end. Whatever is wrong is an error that says what; nothing is left of it. A service that
/// goes away in the middle is asked again, until the time is over.
/// Threads: one at a time.
/// Limits: SessionOptions::timeout_ms for all of it.

namespace guestmem::share {

/// One attach: the descriptors of its answer, checked, and what came through its stream.
struct SessionLink {
    SessionFacts facts;
    Client client;
    PresenceReader presence;
    EventFd bell;
    std::optional<SenderPages> senders;
    WaitSet changes;  ///< bell and stream
    WaitSet vectors;  ///< the own vectors; no set before watch_vectors()
    FileFacts memory;
    bool is_classic = false;

    [[nodiscard]] const std::vector<EventFd>& own_bells() const { return *client.table().find(facts.slot); }
};

/// From the answer of share.attach, with its descriptors, to a place in the share: the part that believes nothing.
[[nodiscard]] Result<SessionLink> enter_link(control::ClientAnswer answer, const SessionOptions& options,
                                             const Deadline& deadline);

[[nodiscard]] Result<SessionLink> attach_link(const SessionOptions& options);

/// Makes the set of the own vectors, in which each kick costs whoever rings.
[[nodiscard]] Result<void> watch_vectors(SessionLink& link);

/// What is left of a deadline, as poll(2) takes it.
[[nodiscard]] int milliseconds_left(const Deadline& deadline);

}  // namespace guestmem::share
