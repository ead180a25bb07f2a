// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>

#include "guestmem/base/result.hpp"
#include "guestmem/share/journal.hpp"
#include "guestmem/share/share.hpp"
#include "guestmem/sys/unix_socket.hpp"

/// The messages that one client still has to get, in order.
///
/// Contract: nothing is dropped and nothing overtakes. flush() sends one message per sendmsg (QEMU pairs only the first
/// of a batch), but for the first ones of a session, until everything is out or the socket takes no more. The caller
/// bounds count_queued().
/// Lifetime: the outbox keeps doorbells and memory alive until they are sent.
/// Threads: one at a time.
/// Cost: a peer's doorbells are one entry, whatever their number, and so are those of all slots: a thousand
/// clients that do not read hold a thousand entries, not a million.

namespace guestmem::share {

class Outbox {
public:
    /// An integer alone: version, id, refusal, disconnect notice.
    void add_value(std::int64_t value);
    /// The memory marker with the share's memory. The share outlives the outbox.
    void add_memory(FdView memory);
    /// One message per vector: the id with that doorbell.
    void add_doorbells(std::shared_ptr<const Doorbells> bells);
    /// The same with `label` in the place of the id.
    void add_doorbells(std::shared_ptr<const Doorbells> bells, std::int64_t label);
    /// The same for each of `slots` but the one with id `except`, in their order. The slots outlive the outbox.
    void add_slots(std::span<const std::shared_ptr<const Doorbells>> slots, std::uint32_t except);

    [[nodiscard]] bool is_empty() const { return steps_.empty(); }
    [[nodiscard]] std::size_t count_queued() const { return count_queued_; }
    [[nodiscard]] std::size_t count_sent() const { return count_sent_; }

    /// What is here goes in one sendmsg, as far as its descriptors fit in: for a session, which can tell them apart.
    void batch_first() { count_batched_ = count_queued_; }
    /// Where each message is noted before it is sent and after. It outlives the outbox.
    void note_progress(Progress& progress) { progress_ = &progress; }
    /// Passes over the first messages: an earlier instance has sent so many, these and others after them, and what is
    /// noted goes on from there.
    void skip(std::size_t count);
    /// Takes out what was not begun of the values first..last, alone or as labels of doorbells. True when doorbells
    /// went with it.
    bool drop(std::int64_t first, std::int64_t last);

    /// sent: everything is out. An error means that the client cannot be served any more.
    [[nodiscard]] Result<SendStatus> flush(const UnixStream& stream);

private:
    struct Step {
        std::int64_t value = 0;
        bool is_labelled = false;  ///< `value` instead of the id
        FdView memory;
        std::shared_ptr<const Doorbells> bells;
        std::size_t next_vector = 0;
        std::span<const std::shared_ptr<const Doorbells>> slots;
        std::uint32_t except = 0;
        std::size_t next_slot = 0;

        /// The doorbells whose turn it is; nullptr for an integer alone or the memory.
        [[nodiscard]] const Doorbells* current() const;
        [[nodiscard]] std::size_t count_messages() const;
        /// Goes on to what the next message is about; false when there is none.
        bool advance();
        void pass_over_except();
        [[nodiscard]] bool says_value() const;
    };
    void note_begun(std::size_t count);
    void note_done(std::size_t count);
    void add(Step step);
    [[nodiscard]] Result<SendStatus> send_batch(const UnixStream& stream);
    void advance();

    std::deque<Step> steps_;
    std::size_t count_queued_ = 0;
    std::size_t count_sent_ = 0;
    std::size_t count_batched_ = 0;  ///< messages that may go together, when nothing was sent
    Progress* progress_ = nullptr;
};

}  // namespace guestmem::share
