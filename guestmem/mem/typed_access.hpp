// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <utility>

#include "guestmem/mem/access.hpp"
#include "guestmem/mem/object.hpp"
#include "guestmem/sys/guarded.hpp"

/// Objects, integers of a stated byte order, arrays and atomic operations in guest memory.
///
/// Concepts: a view says how a spot is found quickly; everything here is inline around that. What finds no spot (a
/// border, a hole, a device) takes the slow way through ByteAccess.
/// Contract: an object of 1, 2, 4 or 8 bytes at an aligned address is read and written whole, where guest and host
/// addresses agree modulo 8, as they do in regions of whole pages; at another address by one instruction, which the
/// machine may split where it crosses a cache line. Larger objects: as ByteAccess says.
/// Atomic operations need an aligned address and one region; each takes the memory order that its std::atomic
/// namesake takes. What was written is marked dirty after it was written; a compare-exchange that does not exchange
/// marks nothing.
/// Threads: as the view says; the guest's processors may access the same bytes at any time.
/// Cost: on top of the raw access, the lookup of the view: about 0.5 ns with a last hit.
/// Known holes: on arm64 read-modify-write operations order as acquire and release at least, and an unaligned store
/// that reaches into a lost page may have stored what is before it.

namespace guestmem {

template <typename T>
struct CompareExchange {
    bool is_exchanged = false;
    T previous{};
};

/// A view derives from this (View is the view itself) and has
///     struct Spot { std::byte* host; void mark_written(std::uint64_t count) const; };
///     bool find_readable(std::uint64_t address, std::uint64_t count, Spot&);
///     bool find_writable(std::uint64_t address, std::uint64_t count, Spot&);
/// which say whether all `count` bytes lie in one run, and where; and `to_spot(piece)`. Each verb keeps its Spot until
/// the bytes are touched and marked: a Spot's destructor is the end of the access.
template <typename View, typename Space>
class TypedAccess : public ByteAccess<Space> {
    using Base = ByteAccess<Space>;

public:
    using AddressType = Address<Space>;

    template <GuestObject T>
    [[nodiscard, gnu::always_inline]] AccessResult<T> read(AddressType address) {
        T value;
        if constexpr (has_word_size<T>) {
            typename View::Spot spot;
            if (view().find_readable(address.value(), sizeof(T), spot)) [[likely]] {
                if (WordOf<T> word; try_load(spot.host, word)) [[likely]]
                    return std::bit_cast<T>(word);
            } else if (std::uint64_t word = 0; view().read_across(address.value(), sizeof(T), word)) {
                return std::bit_cast<T>(static_cast<WordOf<T>>(word));
            }
            // Piece by piece, which also finds the byte of an unaligned word that lies in a lost page.
            if (const auto done = Base::read_bytes(address, {bytes_of(value), sizeof(T)}); !done) [[unlikely]]
                return done.error();
        } else {
            if (const auto done = read_bytes(address, {bytes_of(value), sizeof(T)}); !done) [[unlikely]]
                return done.error();
        }
        return value;
    }

    template <GuestObject T>
    [[nodiscard, gnu::always_inline]] AccessResult<void> write(AddressType address, const T& value) {
        if constexpr (has_word_size<T>) {
            typename View::Spot spot;
            if (view().find_writable(address.value(), sizeof(T), spot)) [[likely]] {
                if (!try_store(spot.host, std::bit_cast<WordOf<T>>(value))) [[unlikely]]
                    return Base::refuse_store(address, spot.host, sizeof(T));
                spot.mark_written(sizeof(T));
                return {};
            }
            if (view().write_across(address.value(), sizeof(T), std::bit_cast<WordOf<T>>(value))) return {};
            return Base::write_bytes(address, {bytes_of(value), sizeof(T)});
        } else {
            return write_bytes(address, {bytes_of(value), sizeof(T)});
        }
    }

    template <std::unsigned_integral T>
    [[nodiscard]] AccessResult<T> read_le(AddressType address) {
        return swapped<std::endian::little>(read<T>(address));
    }
    template <std::unsigned_integral T>
    [[nodiscard]] AccessResult<T> read_be(AddressType address) {
        return swapped<std::endian::big>(read<T>(address));
    }
    template <std::unsigned_integral T>
    [[nodiscard]] AccessResult<void> write_le(AddressType address, T value) {
        return write<T>(address, in_order<std::endian::little>(value));
    }
    template <std::unsigned_integral T>
    [[nodiscard]] AccessResult<void> write_be(AddressType address, T value) {
        return write<T>(address, in_order<std::endian::big>(value));
    }

    template <GuestObject T>
    [[nodiscard]] AccessResult<void> read_array(AddressType address, std::span<T> to) {
        return read_bytes(address, std::as_writable_bytes(to));
    }
    template <GuestObject T>
    [[nodiscard]] AccessResult<void> write_array(AddressType address, std::span<const T> from) {
        return write_bytes(address, std::as_bytes(from));
    }

    [[nodiscard]] AccessResult<void> read_bytes(AddressType address, std::span<std::byte> to) {
        typename View::Spot spot;
        if (!view().find_readable(address.value(), to.size(), spot)) [[unlikely]]
            return Base::read_bytes(address, to);
        const std::size_t done = copy_from_guest(to.data(), spot.host, to.size());
        if (done < to.size()) [[unlikely]]
            return fault(address, Access::read, done);
        return {};
    }
    [[nodiscard]] AccessResult<void> write_bytes(AddressType address, std::span<const std::byte> from) {
        typename View::Spot spot;
        if (!view().find_writable(address.value(), from.size(), spot)) [[unlikely]]
            return Base::write_bytes(address, from);
        const std::size_t done = copy_to_guest(spot.host, from.data(), from.size());
        spot.mark_written(done);
        if (done < from.size()) [[unlikely]]
            return fault(address, Access::write, done);
        return {};
    }

    template <GuestInteger T>
    [[nodiscard, gnu::always_inline]] AccessResult<T> load(
        AddressType address, std::memory_order order = std::memory_order_seq_cst) {
        typename View::Spot spot;
        if (const AccessReason reason = find_aligned<T>(address, Access::read, spot);
            reason != AccessReason::none) [[unlikely]]
            return refuse<T>(address, Access::read, reason);
        WordOf<T> word;
        if (!try_load(spot.host, word, order)) [[unlikely]]
            return fault(address, Access::read);
        return static_cast<T>(word);
    }

    template <GuestInteger T>
    [[nodiscard, gnu::always_inline]] AccessResult<void> store(
        AddressType address, std::type_identity_t<T> value,
        std::memory_order order = std::memory_order_seq_cst) {
        typename View::Spot spot;
        if (const AccessReason reason = find_aligned<T>(address, Access::write, spot);
            reason != AccessReason::none) [[unlikely]]
            return refuse<T>(address, Access::write, reason);
        if (!try_store(spot.host, static_cast<WordOf<T>>(value), order)) [[unlikely]]
            return fault(address, Access::write);
        spot.mark_written(sizeof(T));
        return {};
    }

    template <GuestInteger T>
    [[nodiscard]] AccessResult<T> exchange(AddressType address, std::type_identity_t<T> value,
                                           std::memory_order order = std::memory_order_seq_cst) {
        return modify<T>(address, [&](std::byte* at, WordOf<T>& previous) {
            return try_exchange(at, static_cast<WordOf<T>>(value), previous, order);
        });
    }
    template <GuestInteger T>
    [[nodiscard]] AccessResult<T> fetch_add(AddressType address, std::type_identity_t<T> value,
                                            std::memory_order order = std::memory_order_seq_cst) {
        return modify<T>(address, [&](std::byte* at, WordOf<T>& previous) {
            return try_fetch_add(at, static_cast<WordOf<T>>(value), previous, order);
        });
    }
    template <GuestInteger T>
    [[nodiscard]] AccessResult<T> fetch_or(AddressType address, std::type_identity_t<T> value,
                                           std::memory_order order = std::memory_order_seq_cst) {
        return modify<T>(address, [&](std::byte* at, WordOf<T>& previous) {
            return try_fetch_or(at, static_cast<WordOf<T>>(value), previous, order);
        });
    }
    template <GuestInteger T>
    [[nodiscard]] AccessResult<T> fetch_and(AddressType address, std::type_identity_t<T> value,
                                            std::memory_order order = std::memory_order_seq_cst) {
        return modify<T>(address, [&](std::byte* at, WordOf<T>& previous) {
            return try_fetch_and(at, static_cast<WordOf<T>>(value), previous, order);
        });
    }

    /// Stores `desired` when the guest's value is `expected`; the value that was there is told either way.
    template <GuestInteger T>
    [[nodiscard]] AccessResult<CompareExchange<T>> compare_exchange(
        AddressType address, std::type_identity_t<T> expected, std::type_identity_t<T> desired,
        std::memory_order order = std::memory_order_seq_cst) {
        typename View::Spot spot;
        if (const AccessReason reason = find_aligned<T>(address, Access::write, spot);
            reason != AccessReason::none) [[unlikely]]
            return refuse<T>(address, Access::write, reason);
        auto previous = static_cast<WordOf<T>>(expected);
        bool is_exchanged = false;
        if (!try_compare_exchange(spot.host, previous, static_cast<WordOf<T>>(desired), is_exchanged, order))
            [[unlikely]]
            return fault(address, Access::write);
        if (is_exchanged) spot.mark_written(sizeof(T));
        return CompareExchange<T>{is_exchanged, static_cast<T>(previous)};
    }

protected:
    TypedAccess() = default;
    TypedAccess(const TypedAccess&) = default;
    TypedAccess& operator=(const TypedAccess&) = default;
    ~TypedAccess() = default;

    /// A view that has a quick way for integers on the border of two regions hides these two (border_access.hpp).
    [[nodiscard]] bool read_across(std::uint64_t /*address*/, std::size_t /*size*/, std::uint64_t& /*word*/) {
        return false;
    }
    [[nodiscard]] bool write_across(std::uint64_t /*address*/, std::size_t /*size*/, std::uint64_t /*word*/) {
        return false;
    }

private:
    [[nodiscard]] View& view() { return static_cast<View&>(*this); }

    template <typename T>
    [[nodiscard]] static auto* bytes_of(T& value) {
        return reinterpret_cast<std::conditional_t<std::is_const_v<T>, const std::byte, std::byte>*>(&value);
    }
    template <std::endian order, typename T>
    [[nodiscard]] static AccessResult<T> swapped(AccessResult<T> result) {
        if (!result) [[unlikely]]
            return result;
        return in_order<order>(*result);
    }

    [[nodiscard]] static AccessError fault(AddressType address, Access access, std::uint64_t done = 0) {
        return AccessError{AccessReason::fault, access, address.value() + done, done};
    }

    /// The spot of an atomic access, or why there is none; `crosses_border` stands for "ask the slow way".
    template <typename T, typename Spot>
    [[nodiscard, gnu::always_inline]] AccessReason find_aligned(AddressType address, Access access,
                                                                Spot& spot) {
        if ((address.value() & (sizeof(T) - 1)) != 0) [[unlikely]]
            return AccessReason::misaligned;
        const bool is_found = access == Access::read ? view().find_readable(address.value(), sizeof(T), spot)
                                                     : view().find_writable(address.value(), sizeof(T), spot);
        if (is_found) [[likely]]
            return AccessReason::none;
        // A spot of its own: one whose address is known elsewhere would live in memory, not in registers.
        Spot slow;
        const AccessReason reason = find_slowly(address, sizeof(T), access, slow);
        spot = std::move(slow);
        return reason;
    }
    /// Spots that the view does not find quickly: regions of a few bytes, or at addresses that suit the host badly.
    template <typename Spot>
    [[gnu::noinline]] AccessReason find_slowly(AddressType address, std::size_t size_bytes, Access access,
                                               Spot& spot) {
        const auto piece = this->enter_piece(address, access);
        if (!piece) return piece.error().reason();
        spot = view().to_spot(*piece);
        if (piece->size_bytes < size_bytes) return AccessReason::crosses_border;
        const bool is_aligned = reinterpret_cast<std::uintptr_t>(spot.host) % size_bytes == 0;
        return is_aligned ? AccessReason::none : AccessReason::misaligned;
    }

    template <typename T>
    [[nodiscard, gnu::noinline, gnu::cold]] AccessError refuse(AddressType address, Access access,
                                                               AccessReason reason) {
        if (reason != AccessReason::crosses_border) return AccessError{reason, access, address.value(), 0};
        return this->refuse_atomic(address, sizeof(T), access);
    }

    template <typename T, typename Operation>
    [[nodiscard, gnu::always_inline]] AccessResult<T> modify(AddressType address, Operation&& operation) {
        typename View::Spot spot;
        if (const AccessReason reason = find_aligned<T>(address, Access::write, spot);
            reason != AccessReason::none) [[unlikely]]
            return refuse<T>(address, Access::write, reason);
        WordOf<T> previous;
        if (!operation(spot.host, previous)) [[unlikely]]
            return fault(address, Access::write);
        spot.mark_written(sizeof(T));
        return static_cast<T>(previous);
    }
};

}  // namespace guestmem
