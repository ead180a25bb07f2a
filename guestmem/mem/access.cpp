// SPDX-License-Identifier: Apache-2.0
#include "guestmem/mem/access.hpp"

#include <algorithm>
#include <array>
#include <concepts>
#include <cstring>

#include "guestmem/base/sizes.hpp"
#include "guestmem/sys/guarded.hpp"

namespace guestmem {

namespace {

/// Whether `size_bytes` from `address` on reach past 2^64.
template <typename Space>
bool wraps(Address<Space> address, std::uint64_t size_bytes) {
    return size_bytes != 0 && !address.checked_add(size_bytes - 1);
}

template <typename Space>
Address<Space> at(Address<Space> address, std::uint64_t offset) {
    return Address<Space>{address.value() + offset};
}

/// Copies between guest memory and a buffer go through this many bytes of stack.
constexpr std::size_t chunk_bytes = 512;

}  // namespace

/// Calls step(piece, done, count) for each run of the range: it gives the number of bytes that it did. Fewer than
/// `count` are a fault.
template <typename Space>
template <typename Step>
AccessResult<void> ByteAccess<Space>::walk(AddressType address, std::uint64_t size_bytes, Access access,
                                           Step&& step) {
    if (wraps(address, size_bytes)) return AccessError{AccessReason::overflow, access, address.value(), 0};
    std::uint64_t done = 0;
    while (done < size_bytes) {
        constexpr bool is_revocable = std::same_as<Space, IoVirtualSpace>;
        const AccessResult<Piece> piece =
            is_revocable ? enter_piece(at(address, done), access) : find_piece(at(address, done), access);
        if (!piece) return piece.error().after(done);
        const std::uint64_t count = std::min(piece->size_bytes, size_bytes - done);
        const std::uint64_t count_done = step(*piece, done, count);
        if constexpr (is_revocable) leave_piece();
        done += count_done;
        if (count_done < count) [[unlikely]]
            return AccessError{AccessReason::fault, access, at(address, done).value(), done};
    }
    return {};
}

template <typename Space>
AccessResult<void> ByteAccess<Space>::check_range(AddressType address, std::uint64_t size_bytes,
                                                  Access access) {
    const auto checked =
        walk(address, size_bytes, access,
             [](const Piece& /*piece*/, std::uint64_t /*done*/, std::uint64_t count) { return count; });
    // Nothing was accessed.
    if (!checked) return AccessError{checked.error().reason(), access, checked.error().address(), 0};
    return {};
}

template <typename Space>
AccessResult<HeldPiece> ByteAccess<Space>::hold_piece(AddressType address, Access access) {
    const Piece piece = GM_TRY(find_piece(address, access));
    // At once: at the view's next call its map may be another one.
    HeldPiece held{piece, find_region(piece.guest), piece.io_tracker != nullptr ? io_log() : nullptr};
    GM_CHECK(held.region != nullptr);
    return held;
}

template <typename Space>
AccessResult<void> ByteAccess<Space>::read_bytes(AddressType address, std::span<std::byte> to) {
    return walk(address, to.size(), Access::read,
                [&](const Piece& piece, std::uint64_t done, std::uint64_t count) {
                    return copy_from_guest(to.data() + done, piece.host, count);
                });
}

template <typename Space>
AccessResult<void> ByteAccess<Space>::write_bytes(AddressType address, std::span<const std::byte> from) {
    GM_TRY(check_range(address, from.size(), Access::write));
    return walk(address, from.size(), Access::write,
                [&](const Piece& piece, std::uint64_t done, std::uint64_t count) {
                    const std::size_t count_done = copy_to_guest(piece.host, from.data() + done, count);
                    piece.mark_written(0, count_done);
                    return count_done;
                });
}

template <typename Space>
AccessResult<std::size_t> ByteAccess<Space>::read_some(AddressType address, std::span<std::byte> to) {
    const std::uint64_t room = AddressType::max().value() - address.value();
    if (to.size() > room && to.size() - 1 > room) to = to.first(room + 1);
    const auto read = ByteAccess::read_bytes(address, to);
    if (read) return to.size();
    if (read.error().count_done() == 0) return read.error();
    return static_cast<std::size_t>(read.error().count_done());
}

template <typename Space>
AccessResult<std::size_t> ByteAccess<Space>::write_some(AddressType address,
                                                        std::span<const std::byte> from) {
    const std::uint64_t room = AddressType::max().value() - address.value();
    if (from.size() > room && from.size() - 1 > room) from = from.first(room + 1);
    const auto written = walk(address, from.size(), Access::write,
                              [&](const Piece& piece, std::uint64_t done, std::uint64_t count) {
                                  const std::size_t count_done =
                                      copy_to_guest(piece.host, from.data() + done, count);
                                  piece.mark_written(0, count_done);
                                  return count_done;
                              });
    if (written) return from.size();
    if (written.error().count_done() == 0) return written.error();
    return static_cast<std::size_t>(written.error().count_done());
}

template <typename Space>
AccessResult<void> ByteAccess<Space>::fill(AddressType address, std::byte value, std::uint64_t size_bytes) {
    GM_TRY(check_range(address, size_bytes, Access::write));
    return walk(address, size_bytes, Access::write,
                [&](const Piece& piece, std::uint64_t /*done*/, std::uint64_t count) {
                    const std::size_t count_done = fill_guest(piece.host, value, count);
                    piece.mark_written(0, count_done);
                    return count_done;
                });
}

template <typename Space>
AccessResult<void> ByteAccess<Space>::copy(AddressType to, AddressType from, std::uint64_t size_bytes) {
    GM_TRY(check_range(from, size_bytes, Access::read));
    GM_TRY(check_range(to, size_bytes, Access::write));
    // Through a buffer, chunk by chunk; from the top down when the destination overlaps the source from above. The
    // addresses decide that for a view of one map; two regions of the same bytes are two places here.
    const bool is_downward = to > from && to.value() - from.value() < size_bytes;
    std::array<std::byte, 4096> buffer;
    for (std::uint64_t done = 0; done < size_bytes;) {
        const std::size_t count = std::min<std::uint64_t>(buffer.size(), size_bytes - done);
        const std::uint64_t offset = is_downward ? size_bytes - done - count : done;
        const std::span chunk = std::span{buffer}.first(count);
        const auto read = ByteAccess::read_bytes(at(from, offset), chunk);
        if (!read) {
            const AccessError& error = read.error();
            return AccessError{error.reason(), error.access(), error.address(), done};
        }
        const auto written = ByteAccess::write_bytes(at(to, offset), chunk);
        if (!written) return written.error().after(done);
        done += count;
    }
    return {};
}

template <typename Space>
AccessResult<std::strong_ordering> ByteAccess<Space>::compare(AddressType address,
                                                              std::span<const std::byte> other) {
    // Asked first, and a lost page comes last: the answer does not depend on how the bytes are cut into chunks.
    GM_TRY(check_range(address, other.size(), Access::read));
    std::array<std::byte, chunk_bytes> buffer;
    for (std::size_t done = 0; done < other.size();) {
        const std::span chunk = std::span{buffer}.first(std::min(buffer.size(), other.size() - done));
        const auto read = ByteAccess::read_bytes(at(address, done), chunk);
        const std::size_t count = read ? chunk.size() : read.error().count_done();
        const int order = std::memcmp(chunk.data(), other.data() + done, count);
        if (order != 0) return order < 0 ? std::strong_ordering::less : std::strong_ordering::greater;
        if (!read) return read.error().after(done);
        done += chunk.size();
    }
    return std::strong_ordering::equal;
}

template <typename Space>
AccessResult<std::string> ByteAccess<Space>::read_string(AddressType address, std::size_t max_bytes) {
    std::string text;
    std::array<std::byte, chunk_bytes> buffer;
    while (text.size() < max_bytes) {
        const std::span chunk = std::span{buffer}.first(std::min(buffer.size(), max_bytes - text.size()));
        const auto place = address.checked_add(text.size());
        if (!place) return AccessError{AccessReason::overflow, Access::read, address.value(), text.size()};
        // What follows the NUL may be a hole: as much as there is.
        const auto read = ByteAccess::read_some(*place, chunk);
        if (!read) return read.error().after(text.size());
        const auto* const nul = static_cast<const std::byte*>(std::memchr(chunk.data(), 0, *read));
        const std::size_t count = nul == nullptr ? *read : static_cast<std::size_t>(nul - chunk.data());
        text.append(reinterpret_cast<const char*>(chunk.data()), count);
        if (nul != nullptr) return text;
    }
    return AccessError{AccessReason::unterminated, Access::read, address.value(), max_bytes};
}

template <typename Space>
AccessError ByteAccess<Space>::refuse_atomic(AddressType address, std::size_t size_bytes, Access access) {
    const auto allowed = check_range(address, size_bytes, access);
    if (!allowed) return allowed.error();
    return AccessError{AccessReason::crosses_border, access, address.value(), 0};
}

template <typename Space>
AccessError ByteAccess<Space>::refuse_store(AddressType address, std::byte* host, std::size_t size_bytes) {
    // Writes nothing new, and needs the page as a store does.
    std::uint8_t byte = 0;
    const bool is_first_good = try_fetch_or(host, std::uint8_t{0}, byte, std::memory_order_relaxed);
    const std::uint64_t before_border =
        page_size_bytes - reinterpret_cast<std::uintptr_t>(host) % page_size_bytes;
    const bool is_second = is_first_good && before_border < size_bytes;
    return AccessError{AccessReason::fault, Access::write, address.value() + (is_second ? before_border : 0),
                       0};
}

template class ByteAccess<GuestPhysicalSpace>;
template class ByteAccess<IoVirtualSpace>;

}  // namespace guestmem
