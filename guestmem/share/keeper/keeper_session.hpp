// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "guestmem/share/keeper/keeper.hpp"
#include "guestmem/share/keeper/keeper_wire.hpp"

/// What a keeper has, and what it answers: the rule alone, without sockets. A border: the service may be hostile.
///
/// Concepts: a KeptTable lives as long as the keeper, a KeeperSession as long as one service's connection. A session
/// first hands everything over, one message for each `next`, so that what is in flight stays below the limit of a
/// plain user; then it takes changes.
/// Contract: take() says what to send, and whether the connection (is_over) or the keeper (is_end) ends. A message out
/// of turn, or one whose descriptors are not as many as its keys, is over: nothing of it is done. Descriptors that the
/// kernel had no room for (has_lost_fds) are an errno in the next answer; those that came are kept.
/// Threads: one at a time.
/// Limits: capacity; one more key is ENOSPC in the next answer.
/// Cost: a lookup for each key, 80 bytes each.

namespace guestmem::share {

inline constexpr std::size_t max_kept_fds = 32'768;

class KeptTable {
public:
    explicit KeptTable(std::size_t capacity = max_kept_fds) : capacity_(capacity) {}

    /// False when it is full.
    [[nodiscard]] bool keep(const KeptKey& key, Fd fd);
    void forget(const KeptKey& key) { fds_.erase(key); }
    void clear() { fds_.clear(); }
    [[nodiscard]] std::size_t size() const { return fds_.size(); }
    [[nodiscard]] std::size_t capacity() const { return capacity_; }
    [[nodiscard]] const std::map<KeptKey, Fd>& fds() const { return fds_; }

private:
    std::size_t capacity_;
    std::map<KeptKey, Fd> fds_;
};

struct KeeperReply {
    std::optional<KeeperMessage> message = {};
    std::vector<FdView> fds = {};  ///< of the table, for its keys
    bool is_over = false;
    bool is_end = false;
};

class KeeperSession {
public:
    explicit KeeperSession(KeptTable& table) : table_(&table) {}

    /// What the keeper says first.
    [[nodiscard]] KeeperMessage welcome() const;
    [[nodiscard]] KeeperReply take(const KeeperMessage& message, std::vector<Fd> fds, bool has_lost_fds);
    /// Whether the service has got everything.
    [[nodiscard]] bool is_handed_over() const { return is_handed_over_; }

private:
    [[nodiscard]] KeeperReply hand_over();
    [[nodiscard]] KeeperReply answer(std::uint32_t number);
    void keep_all(const KeeperMessage& message, std::vector<Fd> fds, bool has_lost_fds);
    void note(int os_error);

    KeptTable* table_;
    std::optional<KeptKey> last_handed_;
    bool is_handed_over_ = false;
    std::uint32_t first_errno_ = 0;
};

}  // namespace guestmem::share
