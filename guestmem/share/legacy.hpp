// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "guestmem/base/log.hpp"
#include "guestmem/base/result.hpp"
#include "guestmem/share/journal.hpp"
#include "guestmem/share/keeper/keeper.hpp"

/// What a service leaves to its next instance: the journal, and the descriptors that a keeper holds for it.
///
/// Concepts: without a keeper the journal is written all the same, and nobody reads it.
/// Contract: keep() returns when the keeper has the descriptors. Where the keeper is gone or does not answer this is
/// said once, and has_failed() from then on: the service serves on, and the owner gives the legacy another keeper,
/// which then needs everything again.
/// Lifetime: the log outlives it.
/// Threads: one at a time.

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
    void replace_keeper(std::unique_ptr<Keeper> keeper);

    void keep(std::span<const KeepRequest> requests, std::uint64_t now_ms);
    void keep(const KeptKey& key, FdView fd, std::uint64_t now_ms);
    void forget(std::span<const KeptKey> keys, std::uint64_t now_ms);
    void forget(const KeptKey& key, std::uint64_t now_ms);
    /// Whatever was forgotten is closed with the keeper.
    void sync(std::uint64_t now_ms);

private:
    void check(const Result<void>& done, std::uint64_t now_ms);

    Journal journal_;
    std::unique_ptr<Keeper> keeper_;
    LogLimiter* log_;
    bool has_failed_ = false;
};

}  // namespace guestmem::share
