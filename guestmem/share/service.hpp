// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>

#include "guestmem/base/log.hpp"
#include "guestmem/base/result.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/sys/event_loop.hpp"

/// The share service: gives named memory and doorbells to VMs through ivshmem sockets, and to the host's tools
/// through a control socket.
///
/// Contract: create() makes all memory, doorbells and sockets, and listens; nothing is touched when one of the
/// sockets has a live server. From then on no client can end the service or hurt another one, whatever it does:
///   - a client that does not read is cut at its deadline or at its bounded queue, never waited for;
///   - a client that vanishes, at any point, frees what it held;
///   - out of descriptors, newcomers are refused until some are free again, everybody else goes on;
///   - descriptors in flight at the user's limit (ETOOMANYREFS) are tried again by a timer.
/// A refusal is the version message with -errno, then silence until the client closes: QEMU spins for ever on a
/// bare close during the handshake. Refusals held are bounded in number and time; one log line tells why.
/// Stable ids: see Share. A slot's doorbells are drained once, when the connection of its holder ends.
/// Lifetime: the loop and the log outlive the service. Destroying it closes all clients and removes its sockets.
/// Threads: the owner's loop.
/// Limits: config.hpp; descriptors are counted against RLIMIT_NOFILE at create().
/// Known holes: the life of clients ends with the process; nothing is taken over by a later one.

namespace guestmem::share {

struct ServiceCounts {
    std::size_t sessions = 0;   ///< clients that hold an id
    std::size_t refusals = 0;   ///< refused clients that are still connected
    std::size_t lingering = 0;  ///< cut clients whose unread descriptors still weigh on this user's limit
};

class Service {
public:
    [[nodiscard]] static Result<Service> create(EventLoop& loop, Log& log, ServiceConfig config);
    Service(Service&&) noexcept;
    Service& operator=(Service&&) noexcept;
    ~Service();

    [[nodiscard]] ServiceCounts counts() const;

private:
    class State;
    explicit Service(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

/// How many descriptors the service needs for this configuration when every slot is taken.
[[nodiscard]] std::uint64_t descriptors_needed(const ServiceConfig& config);

}  // namespace guestmem::share
