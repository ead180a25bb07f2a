// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/share/backing.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/share/keeper/keeper.hpp"
#include "guestmem/share/presence.hpp"
#include "guestmem/share/sender_page.hpp"
#include "guestmem/sys/eventfd.hpp"
#include "guestmem/sys/fd.hpp"

/// A share: memory, the doorbells of its slots, the pages that say who is there and who has rung.
///
/// Concepts: the doorbells of one id are what its holder listens on and the others ring. With stable ids they
/// belong to the slot and live as long as the share, so a peer that was told once can ring every later holder.
/// With classic ids each connection brings its own.
/// A sender page belongs to a slot, too: its holder counts there whom it has rung. Shares of at most
/// max_senders have them.
/// Contract: memory and, with stable ids, all doorbells exist once create() returns: a client that joins later
/// cannot fail for want of them. The memory's pages come by steps of its backing.
/// kept_parts() names everything that an instance after this one needs, and adopt() takes it.
/// Lifetime: doorbells are shared with the messages that still have to be sent.
/// Threads: one at a time.

namespace guestmem::share {

struct Doorbells {
    std::uint32_t id = 0;
    std::vector<EventFd> vectors;
};

[[nodiscard]] Result<std::shared_ptr<const Doorbells>> create_doorbells(std::uint32_t id,
                                                                        std::uint32_t vectors);
/// Of an id whose doorbells came back from a keeper; an error when one is missing or is none.
[[nodiscard]] Result<std::shared_ptr<const Doorbells>> adopt_doorbells(std::uint32_t id,
                                                                       std::vector<Fd> vectors);

/// A sender page: its slot's holder may write it, everybody else gets the other descriptor.
struct SenderSlot {
    Fd writable;
    Fd read_only;
};

class Share {
public:
    /// `number` names it in the keeper's keys.
    [[nodiscard]] static Result<Share> create(const ShareConfig& config, std::uint32_t number = 0);
    struct Parts {
        Fd memory;
        Fd presence;
        std::vector<Fd> doorbells;  ///< stable ids: slots x vectors, slot by slot
        std::vector<Fd> senders;    ///< none, or one per slot
    };
    [[nodiscard]] static Result<Share> adopt(const ShareConfig& config, std::uint32_t number, Parts parts);

    [[nodiscard]] const ShareConfig& config() const { return config_; }
    [[nodiscard]] std::uint32_t number() const { return number_; }
    [[nodiscard]] Backing& backing() { return backing_; }
    [[nodiscard]] const Backing& backing() const { return backing_; }
    [[nodiscard]] const Fd& memory() const { return backing_.memory(); }
    /// The same, in a descriptor that cannot be mapped writable.
    [[nodiscard]] const Fd& read_only_memory() const { return read_only_; }
    [[nodiscard]] std::uint64_t extent_bytes() const { return extent_of(config_.size_bytes); }
    [[nodiscard]] PresenceWriter& presence() { return presence_; }
    [[nodiscard]] const Fd& read_only_presence() const { return read_only_presence_; }
    /// Stable ids only: the doorbells of every slot.
    [[nodiscard]] const std::vector<std::shared_ptr<const Doorbells>>& slots() const { return slots_; }
    /// One per slot, or none: see max_senders.
    [[nodiscard]] std::span<const SenderSlot> senders() const { return senders_; }

    [[nodiscard]] std::vector<KeepRequest> kept_parts() const;
    [[nodiscard]] std::vector<KeptKey> kept_keys() const;
    [[nodiscard]] KeptKey doorbell_key(std::uint32_t id, std::uint32_t vector) const {
        return {KeptKind::doorbell, number_, id * config_.vectors + vector};
    }

    /// As its limits count it.
    [[nodiscard]] std::uint64_t count_doorbells() const {
        return std::uint64_t{config_.slots} * config_.vectors;
    }

private:
    Share(ShareConfig config, std::uint32_t number, Backing backing, PresenceWriter presence)
        : config_(std::move(config)),
          number_(number),
          backing_(std::move(backing)),
          presence_(std::move(presence)) {}
    [[nodiscard]] Result<void> make_parts();
    [[nodiscard]] Result<void> make_read_only();

    ShareConfig config_;
    std::uint32_t number_;
    Backing backing_;
    PresenceWriter presence_;
    Fd read_only_;
    Fd read_only_presence_;
    std::vector<std::shared_ptr<const Doorbells>> slots_;
    std::vector<SenderSlot> senders_;
};

/// How many kept_parts() a share will have.
[[nodiscard]] std::size_t count_kept_parts(const ShareConfig& config);

}  // namespace guestmem::share
