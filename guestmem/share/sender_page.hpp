// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/mapping.hpp"

/// Who rang: a page per slot in which its holder counts what it sent to whom, and what it has heard from whom.
///
/// Concepts: a doorbell does not say who rang. So each sender adds 1 to the receiver's counter in its own page, and
/// rings then; the receiver, woken, compares all senders' counters with what it saw last. What it saw is in its
/// own page: a holder that comes back, or the next one, goes on where the last stopped.
/// docs/protocols/presence.md is the layout.
/// Contract: add() before the ring, drain the doorbell before take(): then no sender is missed. take() tells each
/// sender that has added since the last take(), by whichever holder of the slot that was; counts are not told. A
/// program that does not care for what was before it takes once and drops it. A page can be written by the holder of
/// its slot, by nobody else; a holder that lies makes itself seen or unseen, nothing else.
/// Threads: SenderPage any; SenderPages one at a time.
/// Limits: shares of at most max_senders slots; a share with more has no pages.
/// Cost: add() is one atomic addition, take() one load for each sender; no system calls.
/// Example:
///     own.add(3);
///     GM_TRY(doorbell_of(3, 0).ring());
/// Known holes: 2^32 additions between two takes look like none.

namespace guestmem::share {

inline constexpr std::uint64_t sender_page_bytes = 4096;
inline constexpr std::uint32_t max_senders = 16;

using SenderSet = std::bitset<max_senders>;

/// The page of one slot: zeros, of a size that never changes. Others get it through reopen_read_only().
[[nodiscard]] Result<Fd> create_sender_page();

/// Believes a descriptor from outside only when it is a page that nobody can cut short.
[[nodiscard]] Result<void> check_sender_page(FdView page);

/// The own page.
class SenderPage {
public:
    [[nodiscard]] static Result<SenderPage> map(FdView page);

    /// Counts one more for that slot; one that no share has is passed over.
    void add(std::uint32_t receiver);

private:
    friend class SenderPages;
    explicit SenderPage(Mapping mapping) : mapping_(std::move(mapping)) {}
    Mapping mapping_;
};

/// All senders' pages, as one receiver sees them.
class SenderPages {
public:
    /// `own` is the page of slot `receiver`, writable; `others` are those of the other slots, ascending.
    [[nodiscard]] static Result<SenderPages> map(std::uint32_t receiver, FdView own,
                                                 std::span<const FdView> others);

    /// Who has added since the last take().
    [[nodiscard]] SenderSet take();
    /// The same, and it stays.
    [[nodiscard]] SenderSet look() const;

    /// The own page as a sender's; valid for as long as this is.
    [[nodiscard]] SenderPage& own() { return own_; }

private:
    SenderPages(std::uint32_t receiver, SenderPage own) : receiver_(receiver), own_(std::move(own)) {}
    [[nodiscard]] std::uint32_t sent_by(std::uint32_t sender) const;

    std::uint32_t receiver_ = 0;
    SenderPage own_;
    std::vector<Mapping> others_;
};

}  // namespace guestmem::share
