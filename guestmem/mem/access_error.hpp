// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <expected>
#include <string>
#include <string_view>
#include <utility>

#include "guestmem/base/check.hpp"
#include "guestmem/base/error.hpp"
#include "guestmem/mem/address.hpp"

/// What an access to guest memory gives when it does not succeed: why, where, and how much was done before.
///
/// Concepts: guests choose addresses, so a refused access is ordinary and must cost little: an AccessError is
/// 16 bytes without an allocation. `to_error` makes the sentence for whoever wants to show it.
/// Contract: the reasons stay apart (a hole is not an overflow, a misaligned access is neither). `address` is the byte
/// that was refused, in the space that the caller used; `count_done` says how many bytes of the access were done: they
/// have been read, or written, and marked dirty.
/// Threads: any; plain values.
/// Example (examples/guest_memory.cpp):
///     const AccessResult<std::uint32_t> flags = memory.read_le<std::uint32_t>(address);
///     if (!flags) return flags.error().to_error("descriptor 3");

namespace guestmem {

/// What an access means to do.
enum class Access : std::uint8_t { read, write };

enum class AccessReason : std::uint8_t {
    none,               ///< no error; never in an AccessError
    hole,               ///< nothing is mapped there, but further up something is
    out_of_range,       ///< beyond the last mapped address
    misaligned,         ///< an atomic access needs an address that is a multiple of its size
    crosses_border,     ///< an atomic access, or a pointer, may not lie in two regions
    overflow,           ///< address + size is more than 2^64
    read_only,          ///< the region must not be written: read-only memory, or ROM
    device,             ///< the address belongs to a device, not to memory
    fault,              ///< the host has no page there: its file was cut short or its mapping changed
    untranslated,       ///< the IOMMU has no mapping for this address
    denied,             ///< the IOMMU has a mapping, without the permission for this access
    translator_failed,  ///< the translator gave no answer: it is gone, or what it said makes no sense
    unterminated,       ///< no NUL byte within the limit
    list_full,          ///< a scatter list takes no more pieces
};

[[nodiscard]] std::string_view to_string(AccessReason reason);

class [[nodiscard]] AccessError {
public:
    /// Bytes done are kept up to 2^48 - 1; more is said as that.
    static constexpr std::uint64_t max_count_done = (std::uint64_t{1} << 48) - 1;

    constexpr AccessError(AccessReason reason, Access access, std::uint64_t address, std::uint64_t count_done)
        : address_(address),
          packed_((count_done < max_count_done ? count_done : max_count_done) << 16 |
                  static_cast<std::uint64_t>(access) << 8 | static_cast<std::uint64_t>(reason)) {}

    [[nodiscard]] constexpr AccessReason reason() const { return static_cast<AccessReason>(packed_ & 0xff); }
    [[nodiscard]] constexpr Access access() const { return static_cast<Access>(packed_ >> 8 & 0xff); }
    /// The byte that was refused: guest physical, or I/O virtual when the view translates.
    [[nodiscard]] constexpr std::uint64_t address() const { return address_; }
    [[nodiscard]] constexpr std::uint64_t count_done() const { return packed_ >> 16; }

    /// The same failure, `count` bytes further on in a longer access.
    [[nodiscard]] constexpr AccessError after(std::uint64_t count) const {
        // Both below 2^48: the sum does not wrap.
        const std::uint64_t before = count < max_count_done ? count : max_count_done;
        return AccessError{reason(), access(), address_, count_done() + before};
    }

    /// "descriptor 3: read at address 0x1000: hole: ... (0 bytes done before)"
    [[nodiscard]] Error to_error(std::string_view context) const;

    friend constexpr bool operator==(const AccessError&, const AccessError&) = default;

private:
    std::uint64_t address_;
    std::uint64_t packed_;  ///< bytes done, access, reason: 48, 8 and 8 bits
};
static_assert(sizeof(AccessError) == 16);

/// A value or an AccessError; dropping one is a compiler warning.
template <typename T>
class [[nodiscard]] AccessResult {
public:
    using value_type = T;

    // A value and an error become a result by themselves: `return value;`, `return error;`.
    // NOLINTBEGIN(google-explicit-constructor)
    constexpr AccessResult(T value) : state_(std::move(value)) {}
    constexpr AccessResult(AccessError error) : state_(std::unexpect, error) {}
    // NOLINTEND(google-explicit-constructor)

    [[nodiscard]] constexpr bool has_value() const { return state_.has_value(); }
    explicit constexpr operator bool() const { return has_value(); }

    [[nodiscard]] constexpr T& value() & {
        GM_CHECK(has_value());
        return *state_;
    }
    [[nodiscard]] constexpr const T& value() const& {
        GM_CHECK(has_value());
        return *state_;
    }
    [[nodiscard]] constexpr T&& value() && {
        GM_CHECK(has_value());
        return *std::move(state_);
    }
    [[nodiscard]] constexpr T& operator*() & { return value(); }
    [[nodiscard]] constexpr const T& operator*() const& { return value(); }
    [[nodiscard]] constexpr T&& operator*() && { return std::move(*this).value(); }
    [[nodiscard]] constexpr T* operator->() { return &value(); }
    [[nodiscard]] constexpr const T* operator->() const { return &value(); }
    [[nodiscard]] constexpr T value_or(T other) const { return has_value() ? *state_ : other; }

    [[nodiscard]] constexpr const AccessError& error() const {
        GM_CHECK(!has_value());
        return state_.error();
    }

private:
    std::expected<T, AccessError> state_;
};

template <>
class [[nodiscard]] AccessResult<void> {
public:
    using value_type = void;

    constexpr AccessResult() = default;
    // NOLINTNEXTLINE(google-explicit-constructor): `return error;`
    constexpr AccessResult(AccessError error) : state_(std::unexpect, error) {}

    [[nodiscard]] constexpr bool has_value() const { return state_.has_value(); }
    explicit constexpr operator bool() const { return has_value(); }
    constexpr void value() const { GM_CHECK(has_value()); }

    [[nodiscard]] constexpr const AccessError& error() const {
        GM_CHECK(!has_value());
        return state_.error();
    }

private:
    std::expected<void, AccessError> state_;
};

/// What GM_TRY hands on, in a function that returns an AccessResult itself.
template <typename T>
constexpr T take_value(AccessResult<T>&& result) {
    return std::move(result).value();
}
constexpr void take_value(AccessResult<void>&& result) { result.value(); }

}  // namespace guestmem
