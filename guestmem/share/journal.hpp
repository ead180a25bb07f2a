// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/mapping.hpp"

/// What a service has promised to whom, in memory that outlives it: the registry of its shares and connections, and
/// which client was told what.
///
/// Concepts: a record is a line of the journal; its state says whether it counts. A descriptor that a record speaks of
/// is with the keeper before the record's state says so, and leaves it after: what the next instance finds without
/// a record is nobody's.
/// A connection's progress is two numbers: how many messages were begun and how many are done. Equal: the client has
/// just so many. Unequal: the service was killed in the middle of one, and nobody can say whether it left.
/// Contract: every store is one word, in the order in which it is written here; a process that is killed leaves the
/// memory as it is. adopt() believes nothing: numbers out of their bounds are an error, texts end in their fields.
/// Threads: one at a time.
/// Limits: max_journal_shares, max_journal_connections; add_*() gives nullptr when they are full.
/// Cost: pages that were never used cost nothing; a change is some stores.

namespace guestmem::share {

inline constexpr std::size_t max_journal_shares = 512;
inline constexpr std::size_t max_journal_connections = 16'384;

template <std::size_t Bytes>
struct JournalText {
    std::array<char, Bytes> bytes;
    void set(std::string_view text) {
        for (std::size_t i = 0; i < Bytes; ++i) bytes[i] = i + 1 < Bytes && i < text.size() ? text[i] : '\0';
    }
    [[nodiscard]] std::string get() const {
        std::string text;
        for (const char c : bytes) {
            if (c == '\0') break;
            text += c;
        }
        return text;
    }
};

enum class ShareStage : std::uint32_t {
    none,     ///< a free record
    making,   ///< its descriptors go to the keeper; no client has heard of it
    blank,    ///< its memory is to be made zero, or to get pages, before anybody is told
    ready,    ///< clean, all pages there
    retired,  ///< no newcomers; gone with its last peer
};

struct ShareRecord {
    std::atomic<ShareStage> stage;
    std::uint32_t number;
    JournalText<32> name;
    JournalText<32> maker;  ///< the VM that made it; empty: the file, or the host
    JournalText<112> path;
    std::uint64_t size_bytes;
    std::uint64_t huge_page_bytes;
    std::uint32_t vectors;
    std::uint32_t slots;
    std::uint32_t next_classic;
    std::uint8_t ids;
    std::uint8_t backing;
    std::uint8_t is_kept;
    std::uint8_t is_dynamic;
};

enum class ConnectionStage : std::uint32_t {
    none,      ///< a free record
    greeted,   ///< accepted, and with the keeper; nothing was promised
    admitted,  ///< holds an id; its handshake runs, or has ended
};

/// Messages of a connection: begun before each is sent, done after.
struct Progress {
    std::atomic<std::uint32_t> begun;
    std::atomic<std::uint32_t> done;
    [[nodiscard]] bool is_certain() const {
        return begun.load(std::memory_order_relaxed) == done.load(std::memory_order_relaxed);
    }
};

struct ConnectionRecord {
    std::atomic<ConnectionStage> stage;
    std::uint32_t share;  ///< its number
    std::uint32_t id;
    std::uint32_t number;  ///< of this connection: part of the keeper's keys
    Progress progress;
    /// All that it has to be told was sent: what remains is to listen.
    std::atomic<std::uint32_t> is_told;
    /// Classic ids: not 0 when the others hear of it; who is told, and was there, knows it. Stable ids: the slots
    /// towards which it has doorbells of its own, a bit each (pair_bells.hpp).
    std::atomic<std::uint32_t> announced;
    std::int32_t pid;
    std::uint32_t uid;
    std::uint32_t gid;
    std::uint8_t is_tool;
    std::uint8_t has_bell;  ///< 2: and it hears senders apart
    std::uint8_t may_notify;
    std::uint8_t is_read_only;
    JournalText<32> vm;
    JournalText<112> door;
};

/// ConnectionRecord::is_tool of who holds a share and has no place in it.
inline constexpr std::uint8_t holding_tool = 2;

class Journal {
public:
    [[nodiscard]] static Result<Journal> create();
    [[nodiscard]] static Result<Journal> adopt(Fd memory);

    /// How many instances have written in it, this one included.
    [[nodiscard]] std::uint32_t generation() const;
    [[nodiscard]] ShareRecord* add_share();
    [[nodiscard]] ConnectionRecord* add_connection();
    static void remove(ShareRecord& record) { record.stage.store(ShareStage::none); }
    void remove(ConnectionRecord& record);
    [[nodiscard]] std::vector<ShareRecord*> shares();
    [[nodiscard]] std::vector<ConnectionRecord*> connections();

    [[nodiscard]] const Fd& memory() const { return memory_; }

private:
    struct Layout;
    Journal(Fd memory, Mapping mapping) : memory_(std::move(memory)), mapping_(std::move(mapping)) {}
    [[nodiscard]] Layout& layout() const;
    [[nodiscard]] Result<void> check();

    Fd memory_;
    Mapping mapping_;
    std::vector<std::uint32_t> free_connections_;  ///< given back, below the highest that was used
};

}  // namespace guestmem::share
