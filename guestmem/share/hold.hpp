// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "guestmem/base/result.hpp"
#include "guestmem/share/ivshmem/client.hpp"

/// Keeps a share alive without a place in it: its name and its bytes stay while the hold does, and all its slots are
/// for others.
///
/// Contract: take() makes the share when there is none of this name, and returns when all its memory is there; where
/// memory is short it is an error (ENOMEM). A hold outlives the service's process as clients do. The share is gone with
/// its last client and its last hold.
/// Threads: one at a time.
/// Limits: HoldOptions::timeout_ms bounds take(). A hold counts as a peer for limits on peers.
/// Example:
///     Hold hold = GM_TRY(Hold::take({.share = "mailbox", .size_bytes = 65'536}));
/// Known holes: a service that ends without a keeper takes its shares along; is_lost() tells.

namespace guestmem::share {

struct HoldOptions {
    std::string control = {};  ///< a VM's own control socket or the common one; empty: default_control_path()
    std::string share;
    std::uint64_t size_bytes = 0;  ///< of a share that has to be made
    std::uint32_t vectors = 1;     ///< the same
    std::uint32_t slots = 16;      ///< the same
    std::uint64_t timeout_ms = 10'000;
};

class Hold {
public:
    [[nodiscard]] static Result<Hold> take(const HoldOptions& options);

    [[nodiscard]] const std::string& share() const { return share_; }
    /// The first maker's, whatever was asked for.
    [[nodiscard]] std::uint64_t size_bytes() const { return size_bytes_; }
    [[nodiscard]] std::uint32_t slots() const { return slots_; }
    [[nodiscard]] bool was_created() const { return was_created_; }
    /// The service has ended for good, or does not hold it for us any more.
    [[nodiscard]] Result<bool> is_lost() const;

private:
    explicit Hold(Client stream) : stream_(std::move(stream)) {}

    std::string share_;
    std::uint64_t size_bytes_ = 0;
    std::uint32_t slots_ = 0;
    bool was_created_ = false;
    Client stream_;
};

}  // namespace guestmem::share
