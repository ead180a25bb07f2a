// SPDX-License-Identifier: Apache-2.0
#include "guestmem/control/server.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <list>
#include <optional>
#include <span>

#include "guestmem/sys/peer_cgroup.hpp"
#include "guestmem/sys/undertaker.hpp"

namespace guestmem::control {
namespace {

constexpr std::uint64_t housekeeping_ms = 250;

struct Connection {
    UnixStream stream;
    PeerCredentials who;
    EventSource source;
    std::string in;
    std::string out;
    std::size_t sent = 0;
    std::vector<Fd> out_fds;
    std::uint64_t out_id = 0;
    std::uint64_t last_active_ms = 0;
    bool closes_when_sent = false;
    bool is_gone = false;

    [[nodiscard]] bool has_output() const { return sent < out.size(); }
    [[nodiscard]] bool has_line() const { return in.find('\n') != std::string::npos; }
};

std::string party_of(const PeerCredentials& who) { return std::to_string(who.uid); }

}  // namespace

struct Server::State {
    EventLoop* loop = nullptr;
    ServerOptions options;
    Handler handler;
    std::optional<Undertaker> undertaker;
    UnixListener listener;
    EventSource accepting;
    EventSource housekeeping;
    // A list: a connection's handler holds its address.
    std::list<Connection> connections;
    /// Whose request the handler has; nullptr: nobody's.
    const Connection* asking = nullptr;

    void accept_one();
    void serve(Connection& connection, IoEvents events);
    bool receive(Connection& connection);
    void answer_next(Connection& connection);
    void queue(Connection& connection, Result<Outcome> outcome, std::uint64_t id);
    bool flush(Connection& connection);
    void keep_house();
    bool start_housekeeping();
    void sweep() {
        for (auto connection = connections.begin(); connection != connections.end();) {
            if (!connection->is_gone) {
                ++connection;
                continue;
            }
            UnixStream stream = std::move(connection->stream);
            const std::string party = party_of(connection->who);
            connection = connections.erase(connection);
            undertaker->bury(std::move(stream), party);
        }
    }
    [[nodiscard]] bool has_room_for(const PeerCredentials& who) const;
    void pause();
};

bool Server::State::has_room_for(const PeerCredentials& who) const {
    if (who.uid == 0) return connections.size() < options.max_connections;
    const std::size_t kept_for_root =
        options.max_connections > max_connections_per_user ? max_connections_per_user : 0;
    if (connections.size() >= options.max_connections - kept_for_root) return false;
    const auto same =
        std::ranges::count_if(connections, [&](const Connection& c) { return c.who.uid == who.uid; });
    const std::string party = party_of(who);
    return undertaker->has_room(party) &&
           static_cast<std::size_t>(same) + undertaker->count_waiting(party) < max_connections_per_user;
}

/// Looks again at the next housekeeping. Without housekeeping spinning is better than being deaf.
void Server::State::pause() {
    if (start_housekeeping()) accepting = EventSource{};
}

void Server::State::accept_one() {
    auto accepted = listener.accept();
    if (!accepted) {
        // Out of descriptors: the listener stays ready.
        return pause();
    }
    if (!*accepted) return;
    start_housekeeping();
    UnixStream stream = std::move(**accepted);
    const auto who = stream.peer();
    if (!who) {
        undertaker->bury(std::move(stream));
        return;
    }
    if (!has_room_for(*who)) {
        // A fresh socket takes a line; who is gone already needs none.
        const std::string line = encode_answer(
            {.id = 0,
             .result = {},
             .error = Error{Errc::exhausted, EUSERS, "too many control connections; try again later"},
             .count_fds = 0});
        static_cast<void>(stream.send(std::as_bytes(std::span{line})).has_value());
        const std::string party = party_of(*who);
        // One who goes on sending what closes slowly makes a thread of each refusal.
        if (undertaker->bury(std::move(stream), party) && !undertaker->has_room(party)) pause();
        return;
    }
    Connection& connection = connections.emplace_back();
    connection.stream = std::move(stream);
    connection.who = *who;
    connection.last_active_ms = loop->now_ms();
    auto source = loop->add_io(
        connection.stream.view(), IoEvents::readable,
        [this, &connection](IoEvents events) { serve(connection, events); }, Turn::late);
    if (!source) {
        connection.is_gone = true;
        return sweep();
    }
    connection.source = std::move(*source);
}

void Server::State::serve(Connection& connection, IoEvents events) {
    connection.last_active_ms = loop->now_ms();
    const bool is_writable = has_any(events, IoEvents::writable);
    // While an answer waits, only room to write is asked for: what else arrives is a hang-up, and it would arrive
    // again at once for as long as the caller keeps its end half open.
    bool alive = is_writable || !connection.has_output();
    if (is_writable) alive = flush(connection);
    const bool is_idle = !connection.has_output() && !connection.has_line();
    if (alive && has_any(events, IoEvents::readable) && is_idle) alive = receive(connection);
    // One request a turn: a caller that sends a thousand waits behind everybody else a thousand times.
    if (alive && !connection.has_output() && connection.has_line()) {
        answer_next(connection);
        alive = flush(connection);
    }
    if (alive) {
        const bool is_busy = connection.has_output() || connection.has_line();
        alive = connection.source.set_events(is_busy ? IoEvents::writable : IoEvents::readable).has_value();
    }
    if (!alive) {
        connection.is_gone = true;
        sweep();
    }
}

bool Server::State::receive(Connection& connection) {
    std::array<std::byte, 16 * 1024> buffer;
    // Descriptors are neither taken nor freed here: freeing one may block (see Undertaker).
    const auto seen = connection.stream.peek(buffer);
    if (!seen || (*seen && (*seen)->has_fds)) return false;
    if (!*seen) return true;
    auto received = connection.stream.receive(std::span{buffer}.first((*seen)->count_bytes));
    if (!received) return false;
    if (!*received) return true;
    const std::size_t count = (*received)->count_bytes;
    if (count == 0) return false;
    connection.in.append(reinterpret_cast<const char*>(buffer.data()), count);
    if (connection.in.size() > max_request_bytes && connection.in.find('\n') == std::string::npos) {
        queue(connection, Error{Errc::out_of_range, "a request line is longer than 65536 bytes"}, 0);
        connection.closes_when_sent = true;
        return flush(connection);
    }
    return true;
}

void Server::State::answer_next(Connection& connection) {
    const std::size_t newline = connection.in.find('\n');
    const std::string line = connection.in.substr(0, newline);
    connection.in.erase(0, newline + 1);
    auto request = decode_request(line);
    if (!request) {
        connection.closes_when_sent = true;
        queue(connection, std::move(request).error(), 0);
        return;
    }
    connection.who.cgroup.reset();
    if (options.wants_cgroup)
        if (auto cgroup = peer_cgroup(connection.stream.view())) connection.who.cgroup = std::move(*cgroup);
    asking = &connection;
    auto outcome = handler(connection.who, *request);
    asking = nullptr;
    queue(connection, std::move(outcome), request->id);
}

void Server::State::queue(Connection& connection, Result<Outcome> outcome, std::uint64_t id) {
    Answer answer{.id = id, .result = {}, .error = {}, .count_fds = 0};
    connection.out_fds.clear();
    if (outcome) {
        answer.result = std::move(outcome->result);
        answer.count_fds = static_cast<std::uint32_t>(outcome->fds.size());
        connection.out_fds = std::move(outcome->fds);
    } else {
        answer.error = std::move(outcome).error();
    }
    connection.out = encode_answer(answer);
    connection.sent = 0;
    connection.out_id = id;
    if (connection.out.size() > max_answer_bytes + 1)  // the newline does not count
        queue(connection,
              Error{Errc::out_of_range, fmt::format("the answer has {} bytes; the limit is {}",
                                                    connection.out.size() - 1, max_answer_bytes)},
              id);
}

bool Server::State::flush(Connection& connection) {
    while (connection.has_output()) {
        std::vector<FdView> views;
        if (connection.sent == 0)
            for (const Fd& fd : connection.out_fds) views.push_back(fd.view());
        const auto rest = std::as_bytes(std::span{connection.out}.subspan(connection.sent));
        const auto outcome = connection.stream.send(rest, views);
        if (!outcome) return false;
        if (outcome->status == SendStatus::too_many_in_flight) {
            // The caller is told to come back rather than kept waiting: nothing says when there is room again.
            if (connection.out_fds.empty()) return false;
            queue(connection,
                  Error{Errc::exhausted, ETOOMANYREFS,
                        "too many descriptors of the service's user are in flight; try again later"},
                  connection.out_id);
            continue;
        }
        if (outcome->status == SendStatus::would_block) return true;
        connection.sent += outcome->count_bytes;
        connection.out_fds.clear();
    }
    return !connection.closes_when_sent;
}

void Server::State::keep_house() {
    const std::uint64_t now = loop->now_ms();
    for (Connection& connection : connections)
        if (now - connection.last_active_ms > options.idle_timeout_ms) connection.is_gone = true;
    sweep();
    if (!accepting.is_active()) {
        auto source =
            loop->add_io(listener.view(), IoEvents::readable, [this](IoEvents) { accept_one(); }, Turn::late);
        if (source) accepting = std::move(*source);
    }
    // A timer that cannot be set again leaves idle callers in until the next caller comes.
    if (!housekeeping.restart(housekeeping_ms)) housekeeping = EventSource{};
}

bool Server::State::start_housekeeping() {
    if (housekeeping.is_active()) return true;
    auto source = loop->add_timer(housekeeping_ms, [this] { keep_house(); });
    if (source) housekeeping = std::move(*source);
    return housekeeping.is_active();
}

Server::Server(std::unique_ptr<State> state) : state_(std::move(state)) {}
Server::Server(Server&&) noexcept = default;
Server& Server::operator=(Server&&) noexcept = default;
Server::~Server() = default;

const UnixListener& Server::listener() const { return state_->listener; }
void Server::leave_file() { state_->listener.leave_file(); }

void Server::drop_connections() {
    for (Connection& connection : state_->connections) {
        connection.closes_when_sent = true;
        connection.is_gone = &connection != state_->asking;
    }
    state_->sweep();
}

std::size_t Server::count_connections() const { return state_->connections.size(); }

Result<Server> Server::create(EventLoop& loop, const ServerOptions& options, Handler handler) {
    UnixListener listener = GM_TRY(UnixListener::create(options.socket));
    return create(loop, options, std::move(handler), std::move(listener));
}

Result<Server> Server::create(EventLoop& loop, const ServerOptions& options, Handler handler,
                              UnixListener listener) {
    auto state = std::make_unique<State>();
    State* const self = state.get();
    self->loop = &loop;
    self->options = options;
    self->handler = std::move(handler);
    self->undertaker = GM_TRY(Undertaker::create(loop));
    self->listener = std::move(listener);
    self->accepting = GM_TRY(loop.add_io(
        self->listener.view(), IoEvents::readable, [self](IoEvents) { self->accept_one(); }, Turn::late));
    self->housekeeping = GM_TRY(loop.add_timer(housekeeping_ms, [self] { self->keep_house(); }));
    return Server{std::move(state)};
}

}  // namespace guestmem::control
