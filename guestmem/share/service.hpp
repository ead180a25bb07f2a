// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "guestmem/base/log.hpp"
#include "guestmem/base/result.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/share/keeper/inheritance.hpp"
#include "guestmem/sys/event_loop.hpp"

/// The share service: gives named memory and doorbells to VMs through ivshmem sockets, and to host programs and VMs'
/// programs through control sockets.
///
/// Contract: create() makes all memory, doorbells and sockets, and listens; nothing is touched when one of the
/// sockets has a live server. From then on no client can end the service or hurt another one, whatever it does:
///   - a client that does not read is cut at its deadline or at its bounded queue, never waited for;
///   - a client that vanishes, at any point, frees what it held;
///   - out of descriptors, newcomers are refused until some are free again, everybody else goes on;
///   - descriptors in flight at the user's limit (ETOOMANYREFS) are tried again by a timer;
///   - memory that takes long to be had or cleared is had a chunk at a time, between the others' turns.
/// Who a connection is comes from its socket and from the kernel; what it may do from the rules of the configuration.
/// With a keeper the service may be killed at any moment: create() with what the keeper held takes everything over.
/// A client whose last message may or may not have been sent is closed and named; everybody else notices nothing.
/// reload() is all or nothing; who loses a right by it keeps what is mapped, and gets nothing more.
/// Lifetime: the loop and the log outlive the service. Destroying it closes all clients and removes its sockets; after
/// retire() it leaves all of that to the next instance.
/// Threads: the owner's loop.
/// Limits: config.hpp; descriptors are counted against RLIMIT_NOFILE at create().

namespace guestmem::share {

struct ServiceCounts {
    std::size_t sessions = 0;   ///< clients that hold an id
    std::size_t refusals = 0;   ///< refused clients that are still connected
    std::size_t lingering = 0;  ///< cut clients whose unread descriptors still weigh on this user's limit
};

struct ServiceOptions {
    Inheritance inheritance = {};
    /// Another keeper, when the one that there was is gone.
    std::function<Result<std::unique_ptr<Keeper>>()> revive_keeper = {};
    /// The configuration as it is to be from here on, for reload().
    std::function<Result<ServiceConfig>()> reread = {};
    /// A control call has retired the service: its loop may end.
    std::function<void()> on_retired = {};
};

class Service {
public:
    [[nodiscard]] static Result<Service> create(EventLoop& loop, Log& log, ServiceConfig config,
                                                ServiceOptions options = {});
    Service(Service&&) noexcept;
    Service& operator=(Service&&) noexcept;
    ~Service();

    /// What has changed, a line each; an error, and nothing has.
    [[nodiscard]] Result<std::vector<std::string>> reload();
    /// Everything stays with the keeper, an error where there is none.
    [[nodiscard]] Result<void> retire();

    [[nodiscard]] ServiceCounts counts() const;

private:
    class State;
    explicit Service(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

/// How many descriptors the service needs for this configuration when every slot is taken.
[[nodiscard]] std::uint64_t descriptors_needed(const ServiceConfig& config);
/// How many more callers could hold that do not read their answers: a limit below both together is worth a warning.
[[nodiscard]] std::uint64_t descriptors_in_answers(const ServiceConfig& config);

}  // namespace guestmem::share
