// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/range.hpp"
#include "guestmem/share/session.hpp"
#include "guestmem/vmm/vm_memory.hpp"

/// Shares that an operator plugs into a running machine: plain memory at a guest address, without a device.
///
/// Concepts: the machine is a peer of the share from attach() to detach(), and its guest reads and writes the bytes;
/// no doorbell is rung for it. Nothing tells the guest: whoever plugs says where.
/// Contract: attach() shows all of the share or changes nothing. Without an address it takes the highest free one of
/// the window that is a multiple of 2 MiB; a wanted one is a multiple of the page size, free, and outside of what the
/// machine keeps for itself. A share is plugged once. A share that this machine may only read is shown read-only.
/// After detach() the guest finds no memory there.
/// Lifetime: the memory outlives it. What is still plugged then stays until the memory goes; its place in the share
/// ends.
/// Threads: one at a time; attach() waits for the service, at most attach_timeout_ms.
/// Limits: max_shares.
/// Known holes: addresses that a guest's devices take at the same moment are not held back: memory wins over them.

namespace guestmem::vmm {

class PluggedShares {
public:
    static constexpr std::size_t max_shares = 32;
    static constexpr std::uint64_t alignment = 2UL << 20;
    static constexpr std::uint64_t attach_timeout_ms = 2'000;

    struct Options {
        std::string control;                    ///< the service's control socket; empty: there is none
        std::optional<GuestRange> window = {};  ///< for shares whose address nobody chooses
        std::vector<GuestRange> kept = {};      ///< where nobody may choose one
        std::function<std::vector<GuestRange>()> busy = {};  ///< where devices are
    };
    struct Plugged {
        std::string share;
        GuestRange range;
        std::uint32_t slot = 0;
        bool is_read_only = false;
    };

    PluggedShares(VmMemory& memory, Options options) : memory_(memory), options_(std::move(options)) {}

    [[nodiscard]] Result<Plugged> attach(const std::string& share, std::optional<std::uint64_t> wanted);
    [[nodiscard]] Result<void> detach(const std::string& share);
    /// In the order of their attach.
    [[nodiscard]] std::vector<Plugged> list() const;

private:
    struct Entry {
        Plugged plugged;
        share::Session session;
    };
    [[nodiscard]] std::vector<GuestRange> taken() const;
    [[nodiscard]] Result<GuestRange> place(std::uint64_t size_bytes,
                                           std::optional<std::uint64_t> wanted) const;
    [[nodiscard]] Result<GuestRange> choose(std::uint64_t size_bytes) const;

    VmMemory& memory_;
    Options options_;
    std::vector<Entry> entries_;
};

}  // namespace guestmem::vmm
