// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/control/wire.hpp"
#include "guestmem/sys/event_loop.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// The service's end of the control protocol: one socket, many callers, one handler.
///
/// Contract: the handler gets a decoded request and the caller's credentials as the kernel tells them, and
/// returns a result (a JSON object) with descriptors, or an error. A caller gets its answers in the order of its
/// requests. A line that cannot be decoded is answered with an error (id 0) and ends the connection, since the
/// next line cannot be trusted to start where it seems to. A caller that sends descriptors is
/// closed. An answer that is too long, or whose descriptors are too many in flight, becomes an error that says so.
/// drop_connections() closes all who are connected; one whose request is being handled gets its answer first.
/// Limits: max_connections in all, of which max_connections_per_user are kept for root; max_connections_per_user of
/// one uid but root; a caller that neither asks nor reads for idle_timeout_ms is closed; one request is read, and one
/// answer held, at a time. What closes slowly counts as a connection of its user; who has no room to bury more is
/// refused, and four such refusals a second are taken.
/// Threads: the owner's loop.
/// Lifetime: the loop outlives the server; the handler is not called after the server is gone.

namespace guestmem::control {

inline constexpr std::size_t max_connections = 64;
inline constexpr std::size_t max_connections_per_user = 16;

struct Outcome {
    std::string result = "{}";
    std::vector<Fd> fds;
};

using Handler = std::function<Result<Outcome>(const PeerCredentials& caller, const Request& request)>;

struct ServerOptions {
    ListenOptions socket;
    std::uint64_t idle_timeout_ms = 60'000;
    /// In all; at least max_connections_per_user, which are kept for root where there are more.
    std::size_t max_connections = control::max_connections;
    /// The handler is told the caller's control group with each request, where it can be told.
    bool wants_cgroup = false;
};

class Server {
public:
    [[nodiscard]] static Result<Server> create(EventLoop& loop, const ServerOptions& options,
                                               Handler handler);
    /// On a socket that listens already.
    [[nodiscard]] static Result<Server> create(EventLoop& loop, const ServerOptions& options, Handler handler,
                                               UnixListener listener);
    Server(Server&&) noexcept;
    Server& operator=(Server&&) noexcept;
    ~Server();

    [[nodiscard]] std::size_t count_connections() const;
    [[nodiscard]] const UnixListener& listener() const;
    void drop_connections();
    /// The socket's file stays when the server goes.
    void leave_file();

private:
    struct State;
    explicit Server(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

}  // namespace guestmem::control
