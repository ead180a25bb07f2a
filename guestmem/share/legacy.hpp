// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <utility>

#include "guestmem/base/log.hpp"
#include "guestmem/base/result.hpp"
#include "guestmem/share/journal.hpp"
#include "guestmem/share/keeper/keeper.hpp"

/// What a service leaves to its next instance: the journal, and the descriptors that a keeper holds for it.
///
/// Concepts: without a keeper the journal is written all the same, and nobody reads it.
/// Contract: keep() returns when the keeper has the descriptors, or is behind: a keeper that takes nothing for the
/// moment (it is stopped, too many descriptors are in flight) is not waited for. What it lacks is noted by key, and
/// catch_up() gives it later; is_behind() until then, which is said once. Where the keeper is gone this is said once,
/// and has_failed() from then on: the service serves on, and the owner gives the legacy another keeper, which then
/// needs everything again.
/// Who makes or admits something asks check_room() first: a keeper that is full is a reason to refuse.
/// Lifetime: the log outlives it.
/// Threads: one at a time.
/// Cost: while the keeper is behind, a node for each key that it lacks or still has.
/// Known holes: what the keeper lacks does not survive this process. A keeper that is behind may be the last one to
/// close a connection.

namespace guestmem::share {

class Legacy {
public:
    Legacy(Journal journal, std::unique_ptr<Keeper> keeper, LogLimiter& log)
        : journal_(std::move(journal)), keeper_(std::move(keeper)), log_(&log) {}

    [[nodiscard]] Journal& journal() { return journal_; }
    [[nodiscard]] const Journal& journal() const { return journal_; }
    [[nodiscard]] Keeper* keeper() const { return keeper_.get(); }
    [[nodiscard]] bool has_failed() const { return has_failed_; }
    /// Ends the connection, so that the keeper, if it still lives, serves another one.
    void let_go_of_keeper();
    /// `offer` gives everything there is to keep(); what else the keeper holds it lets go of.
    void replace_keeper(std::unique_ptr<Keeper> keeper, std::uint64_t now_ms,
                        const std::function<void()>& offer);

    /// The keeper lacks something, and is not gone.
    [[nodiscard]] bool is_behind() const { return is_behind_; }
    /// Called when it falls behind: catch_up() is wanted from then on.
    void call_when_behind(std::function<void()> handler) { on_behind_ = std::move(handler); }
    /// `offer` gives everything there is to keep(), which passes on what the keeper lacks. Never waits for a keeper
    /// that does not answer. True while it is behind.
    bool catch_up(std::uint64_t now_ms, const std::function<void()>& offer);

    /// Whether so many descriptors more can be kept; also where there is no keeper.
    [[nodiscard]] Result<void> check_room(std::size_t count) const;

    void keep(std::span<const KeepRequest> requests, std::uint64_t now_ms);
    void keep(const KeptKey& key, FdView fd, std::uint64_t now_ms);
    void forget(std::span<const KeptKey> keys, std::uint64_t now_ms);
    void forget(const KeptKey& key, std::uint64_t now_ms);
    /// Whatever was forgotten is closed with the keeper.
    void sync(std::uint64_t now_ms);

private:
    void check(const Result<void>& done, std::uint64_t now_ms);
    [[nodiscard]] bool has_keeper() const { return keeper_ && !has_failed_; }
    /// Whether it was done; where the keeper takes nothing for the moment the caller notes what it was.
    [[nodiscard]] bool is_taken(const Result<void>& done, std::uint64_t now_ms);
    void wait_longer(std::uint64_t now_ms);
    [[nodiscard]] bool give_what_it_lacks(const std::function<void()>& offer, std::uint64_t now_ms);

    Journal journal_;
    std::unique_ptr<Keeper> keeper_;
    LogLimiter* log_;
    std::function<void()> on_behind_;
    std::set<KeptKey> unkept_;
    std::set<KeptKey> unforgotten_;
    std::uint64_t next_try_ms_ = 0;
    std::uint64_t pause_ms_ = 0;
    bool has_failed_ = false;
    bool is_behind_ = false;
    bool is_offering_ = false;  ///< keep() is called by an offer of catch_up()
    bool is_stuck_ = false;     ///< that offer has met a keeper that takes nothing
    bool has_rest_ = false;     ///< the keeper may hold what nobody wants
};

}  // namespace guestmem::share
