// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "guestmem/base/result.hpp"
#include "guestmem/share/keeper/keeper.hpp"

/// What a service and its keeper say to each other: one message is one packet. docs/protocols/keeper.md has
/// byte-level vectors.
///
/// Concepts: a header of 28 bytes, then 12 bytes for each key; descriptors ride along, one for each key, in the same
/// order. Integers are little-endian.
///     0 u32 magic   4 u16 verb   6 u16 count of keys   8 u32 number   12 u32 status   16 u32 values[3]
///     a key: 0 u8 kind   1 three bytes of zero   4 u32 share   8 u32 index
/// Contract: decode() takes what encode() gives and nothing else; it says how many descriptors belong to the message.
/// Threads: any.

namespace guestmem::share {

inline constexpr std::uint32_t keeper_magic = 0x4b504d47;  // "GMPK"
inline constexpr std::uint32_t keeper_version = 1;
inline constexpr std::size_t max_keys_per_message = 250;
inline constexpr std::size_t keeper_header_bytes = 28;
inline constexpr std::size_t keeper_key_bytes = 12;
inline constexpr std::size_t max_keeper_message_bytes =
    keeper_header_bytes + max_keys_per_message * keeper_key_bytes;

enum class KeeperVerb : std::uint16_t {
    // the keeper's
    welcome =
        1,  ///< the first: values are the version, how many descriptors it has, and how many it can have
    refused = 2,  ///< the first and last: status is an errno, values[0] the process that it serves
    holding = 3,  ///< the answer to next: keys with their descriptors; none: that was all
    done = 4,     ///< the answer to what has a number: that number, and the first errno since the last answer
    // the service's
    next = 16,    ///< give more
    keep = 17,    ///< keys with their descriptors
    forget = 18,  ///< keys
    sync = 19,    ///< nothing but the wish for an answer
    end = 20,     ///< forget everything, remove the socket's file, answer, end
};

struct KeeperMessage {
    KeeperVerb verb = KeeperVerb::sync;
    std::uint32_t number = 0;  ///< of a call that wants an answer; 0: none
    std::uint32_t status = 0;  ///< an errno; 0: good
    std::array<std::uint32_t, 3> values = {};
    std::vector<KeptKey> keys = {};

    [[nodiscard]] bool has_fds() const { return verb == KeeperVerb::keep || verb == KeeperVerb::holding; }
    friend bool operator==(const KeeperMessage&, const KeeperMessage&) = default;
};

/// At most max_keys_per_message keys.
[[nodiscard]] std::vector<std::byte> encode(const KeeperMessage& message);
/// An error (corrupt) says what is wrong.
[[nodiscard]] Result<KeeperMessage> decode_keeper_message(std::span<const std::byte> packet);

}  // namespace guestmem::share
