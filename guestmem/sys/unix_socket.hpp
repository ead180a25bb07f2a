// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/deadline.hpp"
#include "guestmem/sys/fd.hpp"

/// AF_UNIX stream sockets that carry bytes, descriptors and credentials.
///
/// Concepts: a UnixListener owns a socket file and accepts; a UnixStream is one connection.
/// Contract: a stale socket file (nobody listens) is replaced; a live one, or a file that is no socket, is an
/// error before anything is touched. Owner, group and mode are set before the first client can connect; an owner or
/// group that is not given is the one that a file made there by this process has. The listener removes its file when it
/// goes, unless somebody put another one there.
/// Sends never raise SIGPIPE. Received descriptors are owned before anything else is done with them, and
/// beyond the number that the caller expects they are closed.
/// Threads: one at a time.
/// Limits: a path has at most 107 bytes; a message at most max_fds_per_message descriptors.

namespace guestmem {

inline constexpr std::size_t max_socket_path_bytes = 107;
inline constexpr std::size_t max_fds_per_message = 32;

/// Who the other end is, as the kernel recorded it at connect time.
struct PeerCredentials {
    std::int32_t pid = 0;
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    /// Where somebody asked for it (peer_cgroup.hpp) and it could be told.
    std::optional<std::string> cgroup = {};
};

[[nodiscard]] Result<PeerCredentials> credentials_of(FdView socket);

enum class SendStatus : std::uint8_t {
    sent,
    would_block,         ///< the other end does not read: wait until the socket is writable
    too_many_in_flight,  ///< this user's descriptors in flight are at the limit: try again later
};

struct SendOutcome {
    SendStatus status = SendStatus::would_block;
    std::size_t count_bytes = 0;
};

struct Received {
    std::size_t count_bytes = 0;  ///< 0: the other end is gone
    std::vector<Fd> fds;
    bool has_lost_fds = false;  ///< descriptors did not fit: too many, or this process is out of them
};

struct Peeked {
    std::size_t count_bytes = 0;  ///< 0: the other end is gone
    bool has_fds = false;
};

class UnixStream {
public:
    UnixStream() = default;
    [[nodiscard]] static Result<UnixStream> connect(const std::string& path);
    /// The same, but a server whose backlog is full is waited for until the deadline only (Errc::timed_out).
    [[nodiscard]] static Result<UnixStream> connect(const std::string& path, const Deadline& deadline);
    /// Two connected ends.
    [[nodiscard]] static Result<std::pair<UnixStream, UnixStream>> pair();
    /// Believes a descriptor from outside only when it is a socket.
    [[nodiscard]] static Result<UnixStream> adopt(Fd fd);

    /// One sendmsg; the descriptors ride on the first byte.
    [[nodiscard]] Result<SendOutcome> send(std::span<const std::byte> bytes,
                                           std::span<const FdView> fds = {}) const;
    /// One recvmsg into `buffer`; nothing when it would block.
    [[nodiscard]] Result<std::optional<Received>> receive(std::span<std::byte> buffer) const;
    /// Copies what waits without taking it, descriptors neither installed nor freed; nothing when nothing waits.
    /// What comes with descriptors is one look, so a receive() of so many bytes takes just what was seen.
    [[nodiscard]] Result<std::optional<Peeked>> peek(std::span<std::byte> buffer) const;
    /// Blocks until there is something to receive; false when `timeout_ms` passes first (-1: for ever).
    [[nodiscard]] Result<bool> wait_readable(int timeout_ms) const;

    [[nodiscard]] Result<PeerCredentials> peer() const;
    /// What was sent and not read yet, in kernel bookkeeping bytes: 0 means everything was read (or dropped).
    [[nodiscard]] Result<std::uint64_t> unread_by_peer() const;
    [[nodiscard]] Result<void> set_nonblocking() const;
    [[nodiscard]] Result<void> set_send_buffer(int size_bytes) const;
    void shut_down() const noexcept;

    [[nodiscard]] bool is_open() const { return fd_.is_open(); }
    [[nodiscard]] FdView view() const { return fd_.view(); }
    /// Gives the descriptor away.
    [[nodiscard]] Fd release() && { return std::move(fd_); }

private:
    friend class UnixListener;
    explicit UnixStream(Fd fd) : fd_(std::move(fd)) {}
    Fd fd_;
};

struct ListenOptions {
    std::string path;
    std::optional<std::uint32_t> owner = {};
    std::optional<std::uint32_t> group = {};
    std::uint32_t mode = 0600;
};

class UnixListener {
public:
    UnixListener() = default;
    UnixListener(UnixListener&& other) noexcept = default;
    UnixListener& operator=(UnixListener&& other) noexcept;
    UnixListener(const UnixListener&) = delete;
    UnixListener& operator=(const UnixListener&) = delete;
    ~UnixListener();

    [[nodiscard]] static Result<UnixListener> create(const ListenOptions& options);
    /// The next connection, non-blocking; nothing when none waits (or it vanished before it was taken).
    [[nodiscard]] Result<std::optional<UnixStream>> accept() const;

    /// One that listens already, as a service manager or an earlier instance of the service has made it; its path is
    /// asked of the kernel. Only where it `is_owner` does it remove the file.
    [[nodiscard]] static Result<UnixListener> adopt(Fd fd, bool is_owner);
    /// Owner, group and mode from here on, as create() would give them.
    [[nodiscard]] Result<void> set_access(const ListenOptions& options) const;
    /// The file stays when the listener goes: somebody else listens on.
    void leave_file() { device_ = inode_ = 0; }
    [[nodiscard]] bool is_owner() const { return inode_ != 0; }

    [[nodiscard]] const std::string& path() const { return path_; }
    [[nodiscard]] FdView view() const { return fd_.view(); }

private:
    void know_file();
    UnixListener(Fd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
    void remove_file() noexcept;

    Fd fd_;
    std::string path_;
    std::uint64_t device_ = 0;
    std::uint64_t inode_ = 0;
};

/// Where a descriptor listens; an error for one that is no listening Unix socket with a path.
[[nodiscard]] Result<std::string> listening_path(FdView fd);

/// What create() would say about this path, touching nothing: fine, or why not.
[[nodiscard]] Result<void> check_socket_path(const std::string& path);

}  // namespace guestmem
