// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "guestmem/base/endian.hpp"

/// The ivshmem server-to-client protocol, version 0: what is on the wire. Source: QEMU's
/// docs/specs/ivshmem-spec.txt, "Client-Server protocol"; docs/protocols/ivshmem.md has byte-level vectors.
///
/// Concepts: a message is one little-endian signed 64-bit integer, with at most one descriptor by SCM_RIGHTS.
/// What it means follows from its place in the stream:
///     protocol_version            the first message
///     id 0..65535                 the second: the client's own
///     memory_marker + descriptor  the third: the shared memory
///     id + descriptor             a doorbell of that peer; its vector is the count of those before it
///     id alone                    that peer is gone (classic ids only)
/// A session that asked to hear senders apart gets, behind that, messages of ours (docs/protocols/ivshmem.md):
///     callers_over                what came of these two before is over, of all senders
///     caller_mark + id            the same of that sender
///     caller_mark + id + descriptor  that sender's own doorbell for this client; its vector is the count before it
/// A refusal is a first message of -errno; a client that speaks version 0 gives up on it.
/// Threads: any.

namespace guestmem::share {

inline constexpr std::int64_t ivshmem_protocol_version = 0;
inline constexpr std::int64_t ivshmem_memory_marker = -1;
inline constexpr std::uint32_t ivshmem_max_peer_id = 65'535;
inline constexpr std::int64_t ivshmem_caller_mark = std::int64_t{1} << 32;
inline constexpr std::int64_t ivshmem_callers_over = std::int64_t{2} << 32;
inline constexpr std::size_t ivshmem_message_bytes = 8;

using IvshmemMessage = std::array<std::byte, ivshmem_message_bytes>;
static_assert(sizeof(IvshmemMessage) == ivshmem_message_bytes);

[[nodiscard]] inline IvshmemMessage encode_ivshmem(std::int64_t value) {
    IvshmemMessage message{};
    store_little<std::int64_t>(message, value);
    return message;
}

[[nodiscard]] inline std::int64_t decode_ivshmem(std::span<const std::byte, ivshmem_message_bytes> message) {
    return load_little<std::int64_t>(message);
}

}  // namespace guestmem::share
