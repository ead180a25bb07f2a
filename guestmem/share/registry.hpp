// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/share/config.hpp"
#include "guestmem/share/hall.hpp"
#include "guestmem/share/policy.hpp"

/// The shares of the service by name: those of its file, and those that clients made.
///
/// Concepts: a static share is as old as the service or its configuration; a dynamic one is gone with its last peer.
/// Contract: make() enters a share in the journal and gives it to the keeper before anybody can hear of it; with
/// Pages::now all its memory is there when it returns, with Pages::later there is room for it and work() brings it.
/// What is over is removed by sweep(), which every look-up does first: a name is free again once its last peer has
/// gone.
/// Lifetime: the host's parts outlive it. Hall addresses stay until they are removed.
/// Threads: the owner's loop.
/// Cost: a look-up is linear in the number of shares.

namespace guestmem::share {

/// What a principal has at the moment.
struct Usage {
    std::uint64_t shares = 0;
    std::uint64_t bytes = 0;
    std::uint64_t vectors = 0;  ///< of its shares' slots and pairs
    std::uint64_t peers = 0;    ///< with those who hold a share and have no place in it
};

/// What would be too much.
struct Excess {
    std::string_view what;
    std::uint64_t would_be = 0;
    std::uint64_t limit = 0;
};

enum class Pages : std::uint8_t { now, later };

class Registry {
public:
    explicit Registry(HallHost host) : host_(std::move(host)) {}
    Registry(const Registry&) = delete;
    Registry& operator=(const Registry&) = delete;
    ~Registry() = default;

    [[nodiscard]] Result<Hall*> make(const ShareConfig& config, const std::string& maker, Pages pages,
                                     std::span<const std::uint32_t> owned_slots);
    /// One that an earlier instance made.
    [[nodiscard]] Result<Hall*> adopt(ShareRecord& record, Share::Parts parts,
                                      std::span<const std::uint32_t> owned_slots);
    /// nullptr: there is none, or it takes no newcomers.
    [[nodiscard]] Hall* find(std::string_view name);
    /// The share whose memory is the file or shm object that this one asks for, retired ones included.
    [[nodiscard]] Hall* find_by_path(const ShareConfig& config);
    [[nodiscard]] std::list<Hall>& halls() { return halls_; }
    [[nodiscard]] const std::list<Hall>& halls() const { return halls_; }
    /// Removes one, whoever is in it.
    void remove(Hall& hall);
    void sweep();
    /// A step of whatever takes long. True while there is more.
    bool work();

    /// Of one VM; of all, and of whatever they made, where `vm` is empty.
    [[nodiscard]] Usage usage_of(std::string_view vm) const;
    /// Whether one more peer, or one more share, stays within the limits; the error names the limit. What all of them
    /// have together is the host's business: a VM is told which limit is reached, and the log has the numbers.
    [[nodiscard]] Result<void> check_peer(std::string_view vm, const UsageLimits* limits,
                                          const UsageLimits& totals) const;
    [[nodiscard]] Result<void> check_share(const ShareConfig& config, std::string_view vm,
                                           const UsageLimits* limits, const UsageLimits& totals) const;
    /// How many doorbells of pairs the dynamic shares of `maker` may have beside what they have.
    [[nodiscard]] std::uint64_t spare_vectors(std::string_view maker, const UsageLimits* limits,
                                              const UsageLimits& totals) const;
    void refill();
    /// The names that backings have made elsewhere are removed: no instance comes after.
    void remove_names();

private:
    [[nodiscard]] Error beyond_totals(std::string_view vm, const Excess& excess) const;
    [[nodiscard]] Result<Share> make_share(const ShareConfig& config, ShareRecord& record, Pages pages);

    HallHost host_;
    // A list: peers' handlers hold the addresses of its elements.
    std::list<Hall> halls_;
};

/// What a record of the journal says of its share.
[[nodiscard]] ShareConfig config_of(const ShareRecord& record);

}  // namespace guestmem::share
