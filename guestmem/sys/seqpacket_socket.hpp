// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// AF_UNIX sockets of whole messages (SOCK_SEQPACKET), each with up to 250 descriptors.
///
/// Concepts: a packet arrives whole, with all of its descriptors, or not at all; it survives the end of whoever sent
/// it. unix_socket.hpp is for streams of bytes.
/// Contract: nothing here blocks but connect() in its kernel. Sends never raise SIGPIPE. Received descriptors are
/// owned before anything else is done with them. A listener has a file of mode 0600 before the first client can
/// connect; a stale file is replaced, a live one or a file of another kind is an error before anything is touched. It
/// removes its file when it goes, unless somebody put another one there, or leave_file() gave it to another process.
/// Threads: one at a time.
/// Limits: max_fds_per_packet; a path has at most 107 bytes. The kernel counts descriptors in flight against
/// RLIMIT_NOFILE of the sender's user (SendStatus::too_many_in_flight) until they are received.
/// Known holes: a folder whose lock somebody else holds is used without it after a second.

namespace guestmem {

/// The kernel takes 253 (SCM_MAX_FD).
inline constexpr std::size_t max_fds_per_packet = 250;

struct ReceivedPacket {
    std::size_t count_bytes = 0;  ///< 0: the other end is gone
    std::vector<Fd> fds;
    bool is_cut = false;        ///< the buffer was too small for it
    bool has_lost_fds = false;  ///< this process is out of descriptors: the last ones are missing
};

class SeqpacketStream {
public:
    SeqpacketStream() = default;
    /// An error (busy) when the backlog is full; (unavailable) when nobody listens.
    [[nodiscard]] static Result<SeqpacketStream> connect(const std::string& path);
    /// Two connected ends.
    [[nodiscard]] static Result<std::pair<SeqpacketStream, SeqpacketStream>> pair();

    /// The whole packet, or nothing of it.
    [[nodiscard]] Result<SendStatus> send(std::span<const std::byte> bytes,
                                          std::span<const FdView> fds = {}) const;
    /// Nothing when nothing waits.
    [[nodiscard]] Result<std::optional<ReceivedPacket>> receive(std::span<std::byte> buffer) const;
    [[nodiscard]] Result<PeerCredentials> peer() const;
    /// A descriptor that is readable once the other end is gone, whatever waits to be received.
    [[nodiscard]] Result<Fd> watch_hangup() const;
    /// Whether the other end is gone; packets of it may still wait.
    [[nodiscard]] bool is_hung_up() const;

    [[nodiscard]] bool is_open() const { return fd_.is_open(); }
    [[nodiscard]] FdView view() const { return fd_.view(); }

private:
    friend class SeqpacketListener;
    explicit SeqpacketStream(Fd fd) : fd_(std::move(fd)) {}
    Fd fd_;
};

class SeqpacketListener {
public:
    SeqpacketListener() = default;
    SeqpacketListener(SeqpacketListener&& other) noexcept = default;
    SeqpacketListener& operator=(SeqpacketListener&& other) noexcept;
    SeqpacketListener(const SeqpacketListener&) = delete;
    SeqpacketListener& operator=(const SeqpacketListener&) = delete;
    ~SeqpacketListener();

    [[nodiscard]] static Result<SeqpacketListener> create(const std::string& path);
    /// Who connects from here on is told this process as the other end, not the one that created it.
    [[nodiscard]] Result<void> listen_as_this_process() const;
    /// The next connection; nothing when none waits (or it vanished before it was taken).
    [[nodiscard]] Result<std::optional<SeqpacketStream>> accept() const;
    /// The file is another process's to remove.
    void leave_file() noexcept { path_.clear(); }

    [[nodiscard]] bool is_open() const { return fd_.is_open(); }
    [[nodiscard]] FdView view() const { return fd_.view(); }

private:
    SeqpacketListener(Fd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
    void remove_file() noexcept;

    Fd fd_;
    std::string path_;
    std::uint64_t device_ = 0;
    std::uint64_t inode_ = 0;
};

/// The path that a socket is bound to ("@name" for an abstract one, empty where it has none or is no AF_UNIX socket).
[[nodiscard]] Result<std::string> bound_path(FdView socket);

}  // namespace guestmem
