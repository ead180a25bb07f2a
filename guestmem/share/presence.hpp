// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <utility>

#include "guestmem/base/result.hpp"
#include "guestmem/sys/fd.hpp"
#include "guestmem/sys/mapping.hpp"

/// Who is there: pages that the service writes and everybody else only reads.
///
/// Concepts: for every slot a word that counts its changes: odd while somebody holds it. A word for the whole counts
/// all changes, so that a reader who sees it unchanged has missed nothing. docs/protocols/presence.md is the
/// layout.
/// Contract: the writer's stores are released in the order slot, then count; readers acquire. So who reads the count
/// first and then the slots sees at least what was counted. Readers get a descriptor that cannot be mapped writable
/// (see Backing::read_only()) of a size that never changes; what they read from a service that lies is checked for its
/// bounds, and any number there is a harmless one.
/// Lifetime: the pages outlive the writer's process where a keeper holds their descriptor; adopt() goes on with them,
/// and counts one change more: the writer before may have been killed between its two stores.
/// Threads: one writer; any readers.
/// Limits: max_presence_slots.
/// Cost: two stores a change; readers make no system call.
/// Example:
///     const std::uint64_t seen = reader.changes();
///     for (std::uint32_t slot = 0; slot < reader.slots(); ++slot) show(slot, reader.is_present(slot));
///     if (reader.changes() != seen) ...  // look again

namespace guestmem::share {

inline constexpr std::uint64_t presence_bytes = 8192;
inline constexpr std::uint32_t max_presence_slots = 1024;

class PresenceWriter {
public:
    [[nodiscard]] static Result<PresenceWriter> create(std::uint32_t slots, std::uint32_t vectors);
    /// Pages of an earlier instance; refused when they are not for so many slots and vectors.
    [[nodiscard]] static Result<PresenceWriter> adopt(Fd pages, std::uint32_t slots, std::uint32_t vectors);

    /// No change when it is so already. `slot` is one of the share's.
    void set(std::uint32_t slot, bool is_present);
    [[nodiscard]] bool is_present(std::uint32_t slot) const;
    [[nodiscard]] const Fd& pages() const { return pages_; }
    [[nodiscard]] Result<Fd> read_only() const;

private:
    PresenceWriter(Fd pages, Mapping mapping, std::uint32_t slots)
        : pages_(std::move(pages)), mapping_(std::move(mapping)), slots_(slots) {}
    void count_change();
    Fd pages_;
    Mapping mapping_;
    std::uint32_t slots_ = 0;
};

class PresenceReader {
public:
    /// Believes a descriptor from outside only when size, magic and bounds fit.
    [[nodiscard]] static Result<PresenceReader> map(FdView pages);

    [[nodiscard]] std::uint32_t slots() const { return slots_; }
    [[nodiscard]] std::uint32_t vectors() const { return vectors_; }
    /// A slot that the share has not is absent.
    [[nodiscard]] bool is_present(std::uint32_t slot) const;
    /// Counts the changes of one slot: odd while it is held; another number is another holder.
    [[nodiscard]] std::uint32_t tenancy(std::uint32_t slot) const;
    /// Counts all changes.
    [[nodiscard]] std::uint64_t changes() const;

private:
    PresenceReader(Mapping mapping, std::uint32_t slots, std::uint32_t vectors)
        : mapping_(std::move(mapping)), slots_(slots), vectors_(vectors) {}
    Mapping mapping_;
    std::uint32_t slots_ = 0;
    std::uint32_t vectors_ = 0;
};

}  // namespace guestmem::share
