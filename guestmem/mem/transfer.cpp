// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/transfer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <concepts>
#include <vector>

#include "guestmem/mem/pointer_guard.hpp"
#include "guestmem/sys/scatter_io.hpp"

namespace guestmem {

namespace {

constexpr std::size_t buffer_bytes = 4096;
/// What one call asks of a stream, at most.
constexpr std::uint64_t stream_bytes = 64 * 1024;

/// The pieces of a range up to the first byte that refuses, at most as many as one system call takes.
struct Gathered {
    std::vector<Piece> pieces;
    std::vector<PieceHold> holds;
    std::vector<IoSlice> slices;
    std::uint64_t size_bytes = 0;
};

template <typename Space>
AccessResult<Gathered> gather(ByteAccess<Space>& memory, Address<Space> address, std::uint64_t size_bytes,
                              Access access) {
    Gathered gathered;
    while (gathered.size_bytes < size_bytes && gathered.slices.size() < max_io_slices) {
        const auto at = address.checked_add(gathered.size_bytes);
        const AccessResult<HeldPiece> held =
            at ? memory.hold_piece(*at, access)
               : AccessResult<HeldPiece>{AccessError{AccessReason::overflow, access, address.value(), 0}};
        if (!held) {
            if (gathered.size_bytes == 0) return held.error();
            break;
        }
        // A view that translates may follow another map, or hold none, while the next piece is looked for.
        if constexpr (std::same_as<Space, IoVirtualSpace>)
            if (gathered.holds.empty() || !gathered.holds.back().covers(*held))
                gathered.holds.emplace_back(*held, "transfer");
        const std::uint64_t count = std::min(held->piece.size_bytes, size_bytes - gathered.size_bytes);
        gathered.slices.push_back({held->piece.host, count});
        gathered.size_bytes += count;
        gathered.pieces.push_back(held->piece);
    }
    return gathered;
}

void mark_written(const Gathered& gathered, std::uint64_t count) {
    for (std::size_t i = 0; i < gathered.pieces.size() && count != 0; ++i) {
        const std::uint64_t part = std::min<std::uint64_t>(count, gathered.slices[i].size_bytes);
        gathered.pieces[i].mark_written(0, part);
        count -= part;
    }
}

/// How many bytes a read may have written. A call is short also when it met a page that is gone, and then sockets and
/// pipes do not count the message in which it failed; a datagram whose checksum is wrong has been copied when it is
/// thrown away; a direct read writes whole blocks behind the file's end.
std::uint64_t count_touched(const FdStream& source, const Gathered& gathered,
                            const Result<std::size_t>& count) {
    if (count && *count == gathered.size_bytes) return *count;
    const Result<FileFacts> facts = file_facts(source.fd);
    if (!facts) return gathered.size_bytes;
    const bool counts_all = facts->is_regular && !facts->is_direct;
    if (count && (counts_all || (*count == 0 && facts->is_stream))) return *count;
    const bool had_nothing = !count && count.error().os_error() == EAGAIN && facts->is_stream;
    return had_nothing ? 0 : gathered.size_bytes;
}

/// How much one call asks of this descriptor: of a stream little, since what comes is less than what is asked as a
/// rule, and all that was asked counts as written.
std::uint64_t most_of(const FdStream& source, std::uint64_t size_bytes) {
    if (size_bytes <= stream_bytes) return size_bytes;
    const Result<FileFacts> facts = file_facts(source.fd);
    return facts && facts->is_stream ? stream_bytes : size_bytes;
}

/// A transfer that writes guest memory reads the stream.
std::string_view what_is(Access access) {
    return access == Access::write ? "read into guest memory" : "write out guest memory";
}

Transfer refused(const AccessError& error, Access access) { return {0, error.to_error(what_is(access))}; }

Transfer transferred(Result<std::size_t> result) {
    if (!result) return {0, std::move(result).error()};
    return {*result, {}};
}

/// Repeats `step(address, size left, bytes done)` until all is done.
template <typename Space, typename Step>
Transfer repeat(Address<Space> address, std::uint64_t size_bytes, Access access, Step&& step) {
    if (size_bytes != 0 && !address.checked_add(size_bytes - 1))
        return refused(AccessError{AccessReason::overflow, access, address.value(), 0}, access);
    std::uint64_t done = 0;
    while (done < size_bytes) {
        Transfer moved = step(Address<Space>{address.value() + done}, size_bytes - done, done);
        done += moved.count_done;
        if (!moved.status) return {done, std::move(moved.status)};
        if (moved.count_done == 0)
            return {done, Error{Errc::out_of_range, fmt::format("{}: the stream ended after {} of {} bytes",
                                                                what_is(access), done, size_bytes)}};
    }
    return {done, {}};
}

FdStream further(const FdStream& stream, std::uint64_t count) {
    if (!stream.offset_bytes) return stream;
    return {stream.fd, *stream.offset_bytes + count};
}

}  // namespace

template <typename Space>
Transfer read_some_from(ByteAccess<Space>& memory, Address<Space> address, std::uint64_t size_bytes,
                        const FdStream& source) {
    if (size_bytes == 0) return {0, {}};
    const auto gathered = gather(memory, address, most_of(source, size_bytes), Access::write);
    if (!gathered) return refused(gathered.error(), Access::write);
    Result<std::size_t> count = read_scattered(source.fd, gathered->slices, source.offset_bytes);
    mark_written(*gathered, count_touched(source, *gathered, count));
    return transferred(std::move(count));
}

template <typename Space>
Transfer read_from(ByteAccess<Space>& memory, Address<Space> address, std::uint64_t size_bytes,
                   const FdStream& source) {
    return repeat(address, size_bytes, Access::write,
                  [&](Address<Space> at, std::uint64_t left, std::uint64_t done) {
                      return read_some_from(memory, at, left, further(source, done));
                  });
}

template <typename Space>
Transfer write_some_to(ByteAccess<Space>& memory, Address<Space> address, std::uint64_t size_bytes,
                       const FdStream& sink) {
    if (size_bytes == 0) return {0, {}};
    const auto gathered = gather(memory, address, size_bytes, Access::read);
    if (!gathered) return refused(gathered.error(), Access::read);
    return transferred(write_scattered(sink.fd, gathered->slices, sink.offset_bytes));
}

template <typename Space>
Transfer write_to(ByteAccess<Space>& memory, Address<Space> address, std::uint64_t size_bytes,
                  const FdStream& sink) {
    return repeat(address, size_bytes, Access::read,
                  [&](Address<Space> at, std::uint64_t left, std::uint64_t done) {
                      return write_some_to(memory, at, left, further(sink, done));
                  });
}

template <typename Space>
Transfer read_some_from(ByteAccess<Space>& memory, Address<Space> address, std::uint64_t size_bytes,
                        ByteSource& source) {
    if (size_bytes == 0) return {0, {}};
    // What the stream gives is gone from there: it is asked for no more than can be written.
    const AccessResult<HeldPiece> held = memory.hold_piece(address, Access::write);
    if (!held) return refused(held.error(), Access::write);
    std::array<std::byte, buffer_bytes> buffer;
    const std::span room =
        std::span{buffer}.first(std::min({buffer.size(), size_bytes, held->piece.size_bytes}));
    const Result<std::size_t> count = source.read_some(room);
    if (!count) return {0, count.error()};
    if (*count > room.size())
        return {0, Error{Errc::corrupt,
                         fmt::format("read into guest memory: the stream says it gave {} bytes of {}", *count,
                                     room.size())}};
    const auto written = memory.write_bytes(address, room.first(*count));
    if (!written) return {written.error().count_done(), written.error().to_error("read into guest memory")};
    return {*count, {}};
}

template <typename Space>
Transfer read_from(ByteAccess<Space>& memory, Address<Space> address, std::uint64_t size_bytes,
                   ByteSource& source) {
    return repeat(address, size_bytes, Access::write,
                  [&](Address<Space> at, std::uint64_t left, std::uint64_t /*done*/) {
                      return read_some_from(memory, at, left, source);
                  });
}

template <typename Space>
Transfer write_some_to(ByteAccess<Space>& memory, Address<Space> address, std::uint64_t size_bytes,
                       ByteSink& sink) {
    if (size_bytes == 0) return {0, {}};
    std::array<std::byte, buffer_bytes> buffer;
    const auto read = memory.read_some(
        address, std::span{buffer}.first(std::min<std::uint64_t>(buffer.size(), size_bytes)));
    if (!read) return refused(read.error(), Access::read);
    const Result<std::size_t> count = sink.write_some(std::span{buffer}.first(*read));
    if (!count) return {0, count.error()};
    if (*count > *read)
        return {0, Error{Errc::corrupt,
                         fmt::format("write out guest memory: the stream says it took {} bytes of {}", *count,
                                     *read)}};
    return {*count, {}};
}

template <typename Space>
Transfer write_to(ByteAccess<Space>& memory, Address<Space> address, std::uint64_t size_bytes,
                  ByteSink& sink) {
    return repeat(address, size_bytes, Access::read,
                  [&](Address<Space> at, std::uint64_t left, std::uint64_t /*done*/) {
                      return write_some_to(memory, at, left, sink);
                  });
}

#define GM_FOR_SPACE_(Space)                                                                              \
    template Transfer read_some_from(ByteAccess<Space>&, Address<Space>, std::uint64_t, const FdStream&); \
    template Transfer read_from(ByteAccess<Space>&, Address<Space>, std::uint64_t, const FdStream&);      \
    template Transfer write_some_to(ByteAccess<Space>&, Address<Space>, std::uint64_t, const FdStream&);  \
    template Transfer write_to(ByteAccess<Space>&, Address<Space>, std::uint64_t, const FdStream&);       \
    template Transfer read_some_from(ByteAccess<Space>&, Address<Space>, std::uint64_t, ByteSource&);     \
    template Transfer read_from(ByteAccess<Space>&, Address<Space>, std::uint64_t, ByteSource&);          \
    template Transfer write_some_to(ByteAccess<Space>&, Address<Space>, std::uint64_t, ByteSink&);        \
    template Transfer write_to(ByteAccess<Space>&, Address<Space>, std::uint64_t, ByteSink&);
GM_FOR_SPACE_(GuestPhysicalSpace)
GM_FOR_SPACE_(IoVirtualSpace)
#undef GM_FOR_SPACE_

}  // namespace guestmem
