// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "guestmem/base/log.hpp"
#include "guestmem/base/result.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/share/hall.hpp"
#include "guestmem/share/legacy.hpp"
#include "guestmem/sys/event_loop.hpp"
#include "guestmem/sys/undertaker.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// The doors of the service: takes connections, counts them, says no, and closes what has ended.
///
/// Concepts: a door is one ivshmem socket. A connection is greeted first: counted for its door and its user, entered
/// in the journal and given to the keeper; then `admit` decides.
/// Contract: a refusal is the version message with -errno, then silence until the client closes: QEMU spins for ever on
/// a bare close during the handshake. Refusals held are bounded in number and time; one log line tells why.
/// A connection counts until it is closed, also with a keeper: what the keeper has of it is closed first. While too
/// many that came through one door close slowly, that door takes nobody; the others do.
/// Out of descriptors, newcomers are refused until some are free again.
/// close_all() ends it for good; abandon() leaves everything to the next instance.
/// Lifetime: what ReceptionHost names outlives it; it does not move (handlers know its address).
/// Threads: the owner's loop.

namespace guestmem::share {

/// The loop's timer of everything that waits.
inline constexpr std::uint64_t service_tick_ms = 50;

struct ReceptionHost {
    EventLoop& loop;
    LogLimiter& log;
    const Limits& limits;
    Legacy& legacy;
    std::function<Result<std::uint32_t>(const DoorConfig&, Entrant&)> admit;
    /// How many connections a door may have that names no slots.
    std::function<std::size_t(const std::string& share)> slots_of;
    std::function<bool()> shed_slowest;
    std::function<void()> on_work_left;
};

/// A listener of an earlier instance, with the keeper's key for it.
struct InheritedListener {
    UnixListener listener;
    std::optional<KeptKey> key;  ///< nothing: of socket activation
};

class Reception {
public:
    [[nodiscard]] static Result<std::unique_ptr<Reception>> create(ReceptionHost host);
    Reception(const Reception&) = delete;
    Reception& operator=(const Reception&) = delete;
    ~Reception() = default;

    [[nodiscard]] Result<void> open(const DoorConfig& config, std::optional<InheritedListener> inherited);
    [[nodiscard]] bool has_door(std::string_view path) const;
    /// Another share, VM or slots behind the same socket, and other access to it.
    [[nodiscard]] Result<void> change(const DoorConfig& config);
    /// Who waits there is told so, and the socket is removed; who came through it stays.
    void close(std::string_view path);

    /// Of a tool or a session, whose stream came by another way. On success the entrant is with the keeper.
    [[nodiscard]] Result<void> enter(Entrant& entrant);
    /// One that an earlier instance has greeted: it is counted, and nothing else.
    void count(const Entrant& entrant);
    /// One that an earlier instance has greeted and promised nothing: as if it had come now.
    void greet_again(Entrant entrant);
    /// Ends a connection that holds no id any more.
    void depart(Entrant entrant);
    /// Closes a connection that cannot be taken over.
    void release(Entrant entrant);

    /// True while there is something to wait for.
    bool tick(std::uint64_t now_ms);
    void close_all();
    void abandon();
    /// The keeper is another one: it gets every listener. Those who were told no, or wait to be closed, have no record
    /// in the journal: the next instance would not know what to do with them.
    void refill();
    /// A number for a listener with the keeper that nobody has; also for sockets that are no doors.
    [[nodiscard]] KeptKey take_listener_key() { return {KeptKind::listener, 0, next_listener_++}; }
    void reserve_listener_key(const KeptKey& key) {
        next_listener_ = std::max(next_listener_, key.index + 1);
    }

    [[nodiscard]] std::size_t count_refusals() const { return refusals_.size(); }
    [[nodiscard]] std::size_t count_lingering() const { return lingering_.size(); }

private:
    struct Door {
        DoorConfig config;
        UnixListener listener;
        std::optional<KeptKey> key;
        EventSource accepting;
        std::size_t count_connections = 0;
    };
    /// A client that was told no, until it closes.
    struct Refusal {
        Entrant entrant;
        std::uint64_t until_ms = 0;
        EventSource source;
    };

    explicit Reception(ReceptionHost host) : host_(std::move(host)) {}
    [[nodiscard]] Door* find(std::string_view path);
    [[nodiscard]] std::size_t max_connections(const Door& door) const;
    [[nodiscard]] Result<void> listen(Door& door);
    void accept(Door& door);
    void greet(Door& door, UnixStream stream);
    void handle_accept_failure(Door& door, const Error& error);
    void enter_in_journal(Entrant& entrant);
    void refuse(Entrant entrant, int os_error, std::string_view why);
    void dismiss(const UnixStream& stream, int os_error);
    void dismiss_waiting(Door& door);
    void serve_refusal(Refusal& refusal);
    void end_refusal(Refusal& refusal);
    void forget(const std::string& door_path, std::uint32_t uid);
    [[nodiscard]] Result<void> check_user(std::uint32_t uid) const;
    void say(LogLevel level, std::string_view text) { host_.log.write(level, text, host_.loop.now_ms()); }

    ReceptionHost host_;
    std::optional<Undertaker> undertaker_;
    // Lists: handlers hold the addresses of their elements.
    std::list<Door> doors_;
    std::list<Refusal> refusals_;
    std::list<Entrant> lingering_;
    std::map<std::uint32_t, std::uint32_t> connections_of_user_;
    std::uint32_t next_listener_ = 1;
    /// Given up for a moment when descriptors run out, to tell a newcomer so.
    Fd reserve_;
    /// No limit on descriptors in flight binds this process.
    bool is_exempt_ = false;
};

}  // namespace guestmem::share
