// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "guestmem/base/result.hpp"
#include "guestmem/mem/access.hpp"
#include "guestmem/sys/fd.hpp"

/// Guest memory to and from descriptors and streams.
///
/// Concepts: `read_from` reads from a file, socket or stream into guest memory; `write_to` writes guest memory to it. A
/// descriptor moves whole scatter lists per system call, without a copy; a stream (ByteSource, ByteSink) goes through
/// a buffer.
/// Contract: the "some" verbs make one call and may be short: 0 bytes is the stream's end. The others go on after
/// short calls, across the borders of regions, at the very next byte, until all is done; a stream that ends before
/// that is Errc::out_of_range. A Transfer says how many bytes were done even when it failed, so who gets
/// Errc::unavailable from a descriptor that does not block goes on from there.
/// What was read is marked dirty. Of a file that is what arrived. Whatever else was asked for a range, and gave less or
/// failed, has it all marked, since the kernel may have written more than it counts: sockets, pipes, devices, files
/// that are opened with O_DIRECT. A pipe or stream socket is asked for 64 KiB at a time for that reason, and one that
/// has nothing marks nothing. Bytes are taken from a stream only for memory that can be written.
/// Threads: as the view says.
/// Known holes: when the host loses a page between the check and the copy from a stream, at most a buffer of bytes that
/// the stream gave is lost with it; the Transfer's status says "fault".
/// Example (examples/guest_memory.cpp):
///     const Transfer loaded = read_from(memory, GuestAddress{0x100000}, size, FdStream{kernel, 0});
///     GM_TRY(loaded.status);

namespace guestmem {

struct [[nodiscard]] Transfer {
    std::uint64_t count_done = 0;
    Result<void> status;
};

/// A descriptor: at its own position, or at `offset_bytes`, which leaves the position alone.
struct FdStream {
    FdView fd;
    std::optional<std::uint64_t> offset_bytes = std::nullopt;
};

/// Where bytes come from.
class ByteSource {
public:
    ByteSource() = default;
    ByteSource(const ByteSource&) = delete;
    ByteSource& operator=(const ByteSource&) = delete;
    virtual ~ByteSource() = default;
    /// At least one byte, unless the stream ended: 0.
    [[nodiscard]] virtual Result<std::size_t> read_some(std::span<std::byte> to) = 0;
};

/// Where bytes go.
class ByteSink {
public:
    ByteSink() = default;
    ByteSink(const ByteSink&) = delete;
    ByteSink& operator=(const ByteSink&) = delete;
    virtual ~ByteSink() = default;
    /// At least one byte, unless it takes no more: 0.
    [[nodiscard]] virtual Result<std::size_t> write_some(std::span<const std::byte> from) = 0;
};

template <typename Space>
Transfer read_some_from(ByteAccess<Space>& memory, Address<Space> address, std::uint64_t size_bytes,
                        const FdStream& source);
template <typename Space>
Transfer read_from(ByteAccess<Space>& memory, Address<Space> address, std::uint64_t size_bytes,
                   const FdStream& source);
template <typename Space>
Transfer write_some_to(ByteAccess<Space>& memory, Address<Space> address, std::uint64_t size_bytes,
                       const FdStream& sink);
template <typename Space>
Transfer write_to(ByteAccess<Space>& memory, Address<Space> address, std::uint64_t size_bytes,
                  const FdStream& sink);

template <typename Space>
Transfer read_some_from(ByteAccess<Space>& memory, Address<Space> address, std::uint64_t size_bytes,
                        ByteSource& source);
template <typename Space>
Transfer read_from(ByteAccess<Space>& memory, Address<Space> address, std::uint64_t size_bytes,
                   ByteSource& source);
template <typename Space>
Transfer write_some_to(ByteAccess<Space>& memory, Address<Space> address, std::uint64_t size_bytes,
                       ByteSink& sink);
template <typename Space>
Transfer write_to(ByteAccess<Space>& memory, Address<Space> address, std::uint64_t size_bytes,
                  ByteSink& sink);

}  // namespace guestmem
