// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/fd.hpp"

/// A share: sealed memory and the doorbells of its slots.
///
/// Concepts: the doorbells of one id are what its holder listens on and the others ring. With stable ids they
/// belong to the slot and live as long as the share, so a peer that was told once can ring every later holder.
/// With classic ids each connection brings its own.
/// Contract: memory and, with stable ids, all doorbells exist once create() returns: a client that joins later
/// cannot fail for want of them.
/// Lifetime: doorbells are shared with the messages that still have to be sent.
/// Threads: one at a time.

namespace guestmem::share {

struct Doorbells {
    std::uint32_t id = 0;
    std::vector<EventFd> vectors;
};

[[nodiscard]] Result<std::shared_ptr<const Doorbells>> create_doorbells(std::uint32_t id,
                                                                        std::uint32_t vectors);

class Share {
public:
    [[nodiscard]] static Result<Share> create(const ShareConfig& config);

    [[nodiscard]] const ShareConfig& config() const { return config_; }
    [[nodiscard]] const Fd& memory() const { return memory_; }
    [[nodiscard]] std::uint64_t extent_bytes() const { return extent_of(config_.size_bytes); }
    /// Stable ids only: the doorbells of every slot.
    [[nodiscard]] const std::vector<std::shared_ptr<const Doorbells>>& slots() const { return slots_; }

private:
    Share(ShareConfig config, Fd memory) : config_(std::move(config)), memory_(std::move(memory)) {}

    ShareConfig config_;
    Fd memory_;
    std::vector<std::shared_ptr<const Doorbells>> slots_;
};

}  // namespace guestmem::share
