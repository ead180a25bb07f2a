// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "guestmem/share/keeper/inheritance.hpp"
#include "guestmem/share/keeper/keeper.hpp"
#include "guestmem/share/keeper/keeper_wire.hpp"
#include "guestmem/sys/deadline.hpp"
#include "guestmem/sys/seqpacket_socket.hpp"

/// The service's side of a keeper process (keeper_process.hpp).
///
/// Contract: join_keeper() connects, starts a keeper where none listens, and returns with everything that it held. The
/// other end has to be a process of the own user, of root, or of `users`. While another service is served, join waits
/// for its end until `patience` is over; the error (busy) has its number.
/// keep() of one descriptor is one send: once it returned, the descriptor is in flight and survives this process. Of
/// several it waits for an answer to each message of 250. A keeper that does not read (stopped, say) makes a call an
/// error (timed_out) after `patience`; the connection stays, and later calls may do well.
/// gone() is readable once the keeper, or the connection, has ended; every call is an error (unavailable) then. What is
/// held here is still open: a new keeper is joined and given everything.
/// Limits: as many keys as the keeper has said; one more is an error (exhausted) before anything is sent.
/// Threads: one at a time.
/// Cost: 5,000 descriptors come in about 2 ms; one is about 10 us to keep, since it wakes the keeper; 64 bytes of
/// memory for each key.

namespace guestmem::share {

struct KeeperJoinOptions {
    std::string path;
    std::vector<std::uint32_t> users = {};  ///< who may be the keeper, besides root and ourselves
    std::chrono::milliseconds patience{5'000};
    bool drops_privileges = true;  ///< of a keeper that has to be started: see KeeperProcessOptions
};

[[nodiscard]] Result<Inheritance> join_keeper(const KeeperJoinOptions& options);

class KeeperLink final : public Keeper {
public:
    /// Speaks to a keeper at the other end of `stream`, and takes all that it has into `kept`. An error (unavailable)
    /// when the other end ends instead; (busy) when it serves another.
    [[nodiscard]] static Result<std::unique_ptr<KeeperLink>> create(SeqpacketStream stream,
                                                                    const KeeperJoinOptions& options,
                                                                    std::vector<KeptFd>& kept);

    [[nodiscard]] Result<void> keep(std::span<const KeepRequest> requests) override;
    [[nodiscard]] Result<void> forget(std::span<const KeptKey> keys) override;
    [[nodiscard]] Result<void> sync() override;
    [[nodiscard]] Result<void> end() override;
    [[nodiscard]] FdView gone() const override { return hangup_; }
    [[nodiscard]] std::string describe() const override;

    [[nodiscard]] std::size_t capacity() const { return capacity_; }

private:
    KeeperLink(SeqpacketStream stream, Fd hangup, std::int32_t process, std::chrono::milliseconds patience)
        : stream_(std::move(stream)), hangup_(std::move(hangup)), process_(process), patience_(patience) {}

    struct Incoming {
        KeeperMessage message;
        std::vector<Fd> fds;
    };
    [[nodiscard]] Result<void> take_over(std::vector<KeptFd>& kept, const Deadline& deadline);
    [[nodiscard]] Result<void> greet(const Incoming& first);
    [[nodiscard]] Result<void> send(const KeeperMessage& message, std::span<const FdView> fds,
                                    const Deadline& deadline) const;
    [[nodiscard]] Result<Incoming> receive(const Deadline& deadline);
    /// Sends a message that wants an answer, and waits for it.
    [[nodiscard]] Result<void> ask(KeeperMessage message, std::span<const FdView> fds);
    [[nodiscard]] Result<void> check_room(std::span<const KeepRequest> requests) const;
    [[nodiscard]] Error late() const;
    [[nodiscard]] Error ended() const;

    SeqpacketStream stream_;
    Fd hangup_;
    std::int32_t process_;
    std::chrono::milliseconds patience_;
    std::size_t count_announced_ = 0;
    std::size_t capacity_ = 0;
    std::uint32_t last_number_ = 0;
    std::set<KeptKey> keys_;
};

}  // namespace guestmem::share
