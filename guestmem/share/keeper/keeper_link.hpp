// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
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
/// keep() of at most 250 descriptors is one send: once it returned, they are in flight and survive this process. Of
/// more it waits for an answer to each message but the last. A keeper that does not read (stopped, say) makes keep()
/// and forget() an error (timed_out) after `call_patience`, and all else after `patience`; descriptors in flight at the
/// limit of this user are waited for a few milliseconds only. The connection stays, and later calls may do well.
/// gone() is readable once the keeper, or the connection, has ended; every call is an error (unavailable) then. What is
/// held here is still open: a new keeper is joined and given everything.
/// Limits: as many keys as the keeper has said; one more is an error (exhausted) before anything is sent. In a join
/// 500 descriptors are in flight at most.
/// Threads: one at a time.
/// Cost: 5,000 descriptors come in about 2 ms; one is about 10 us to keep, since it wakes the keeper; 64 bytes of
/// memory for each key.

namespace guestmem::share {

struct KeeperJoinOptions {
    std::string path;
    std::vector<std::uint32_t> users = {};  ///< who may be the keeper, besides root and ourselves
    std::chrono::milliseconds patience{5'000};
    std::chrono::milliseconds call_patience{250};  ///< of keep() and forget(), which an event loop calls
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
    [[nodiscard]] Result<void> sync_soon() override;
    [[nodiscard]] Result<void> end() override;
    [[nodiscard]] Result<void> check_room(std::size_t count) const override;
    [[nodiscard]] Result<bool> is_answering() override;
    [[nodiscard]] Result<void> forget_rest() override;
    [[nodiscard]] FdView gone() const override { return hangup_; }
    [[nodiscard]] std::string describe() const override;

    [[nodiscard]] std::size_t capacity() const { return capacity_; }

private:
    KeeperLink(SeqpacketStream stream, Fd hangup, std::int32_t process, const KeeperJoinOptions& options)
        : stream_(std::move(stream)),
          hangup_(std::move(hangup)),
          process_(process),
          patience_(options.patience),
          call_patience_(options.call_patience) {}

    struct Incoming {
        KeeperMessage message;
        std::vector<Fd> fds;
    };
    [[nodiscard]] Result<void> take_over(std::vector<KeptFd>& kept, const Deadline& deadline);
    [[nodiscard]] Result<void> greet(const Incoming& first);
    [[nodiscard]] Result<void> send(const KeeperMessage& message, std::span<const FdView> fds,
                                    const Deadline& deadline) const;
    [[nodiscard]] Result<Incoming> receive(const Deadline& deadline);
    /// One message; nothing when none waits.
    [[nodiscard]] Result<std::optional<Incoming>> receive_now();
    /// Sends a message that wants an answer, and waits for it.
    [[nodiscard]] Result<void> ask(KeeperMessage message, std::span<const FdView> fds,
                                   const Deadline& deadline);
    /// An answer's number. What the keeper could not do is an error.
    [[nodiscard]] Result<std::uint32_t> read_answer(const Incoming& incoming);
    [[nodiscard]] std::uint32_t take_number();
    [[nodiscard]] Error late() const;
    [[nodiscard]] Error ended() const;

    SeqpacketStream stream_;
    Fd hangup_;
    std::int32_t process_;
    std::chrono::milliseconds patience_;
    std::chrono::milliseconds call_patience_;
    std::size_t count_announced_ = 0;
    std::size_t capacity_ = 0;
    std::uint32_t last_number_ = 0;
    std::uint32_t probe_ = 0;  ///< the number of a question that is_answering() waits for; 0: none
    bool is_probed_ = false;   ///< it was answered, and is_answering() has not said so
    enum class Since : std::uint8_t { join, keep };
    std::map<KeptKey, Since> keys_;
};

}  // namespace guestmem::share
