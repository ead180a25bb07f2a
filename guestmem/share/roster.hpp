// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/share/config.hpp"

/// Who gets which id of a share: the rule alone, without sockets.
///
/// Concepts: a VM asks for one of its own slots; an unnamed client for the lowest free one; a host tool for the
/// highest free one. Slots that VMs own are given to nobody else.
/// Contract: an id is held once. A refusal is an Error whose os_error() is what the client is told:
/// EBUSY (its slot is taken), ENOSPC (no slot is free), EUSERS (classic ids are used up).
/// Among free slots that would do, those that are preferred come first.
/// With classic ids everybody gets the next number; at most `slots` are held at a time, none is used twice.
/// Threads: one at a time.
/// Cost: logarithmic in the number of slots.

namespace guestmem::share {

enum class Wish : std::uint8_t { own, lowest, highest };

class Roster {
public:
    Roster(const ShareConfig& config, std::span<const std::uint32_t> owned);

    /// `own` is read for Wish::own only, `is_preferred` for the others; an empty one prefers none.
    [[nodiscard]] Result<std::uint32_t> take(Wish wish, std::span<const std::uint32_t> own = {},
                                             const std::function<bool(std::uint32_t)>& is_preferred = {});
    /// Takes an id that its holder had before this roster was made; false where somebody has it, or it is none.
    [[nodiscard]] bool hold(std::uint32_t id);
    void release(std::uint32_t id);
    /// Which slots belong to VMs from here on; who holds one keeps it.
    void set_owned(std::span<const std::uint32_t> owned);
    /// Classic ids go on there.
    void set_next_classic(std::uint32_t id) { next_classic_ = id; }
    [[nodiscard]] std::uint32_t next_classic() const { return next_classic_; }
    [[nodiscard]] bool is_owned(std::uint32_t slot) const { return owned_.contains(slot); }
    [[nodiscard]] std::size_t count_held() const { return held_.size(); }

private:
    [[nodiscard]] Result<std::uint32_t> take_classic();

    IdPolicy policy_;
    std::uint32_t slots_;
    std::set<std::uint32_t> free_open_;   ///< stable ids: free slots that no VM owns
    std::set<std::uint32_t> free_owned_;  ///< stable ids: free slots that a VM owns
    std::set<std::uint32_t> owned_;
    std::set<std::uint32_t> held_;
    std::uint32_t next_classic_ = 0;
};

}  // namespace guestmem::share
