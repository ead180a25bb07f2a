// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>

/// Addresses: one type per address space, and arithmetic that says what happens at the end of it.
///
/// Concepts: a GuestAddress is guest physical; an IoAddress (IOVA) is what a device behind an IOMMU says; a
/// HostAddress is a place in the address space of some process of the host, ours or another (a vhost-user
/// front end's). They do not convert into each other: a map or a translator does that. A pointer that we may
/// follow is a `std::byte*`, never a HostAddress.
/// Contract: every address of 64 bits is a valid value. There is no operator+: `checked_add` gives nothing on
/// overflow, `overflowing_add` the wrapped address and whether it wrapped, `saturating_add` the last address.
/// An alignment is a power of two; for any other number the answer is "no", not undefined behavior.
/// Threads: any; plain values.
/// Example (examples/guest_memory.cpp):
///     const GuestAddress ring{0x1000};
///     const std::optional<GuestAddress> used = ring.checked_add(0x800);

namespace guestmem {

template <typename Space>
struct OverflowingAddress;

template <typename Space>
class Address {
public:
    constexpr Address() = default;
    explicit constexpr Address(std::uint64_t value) : value_(value) {}

    /// The last address there is: 2^64 - 1.
    [[nodiscard]] static constexpr Address max() {
        return Address{std::numeric_limits<std::uint64_t>::max()};
    }

    [[nodiscard]] constexpr std::uint64_t value() const { return value_; }

    [[nodiscard]] constexpr std::optional<Address> checked_add(std::uint64_t count) const {
        if (count > max().value_ - value_) return std::nullopt;
        return Address{value_ + count};
    }
    [[nodiscard]] constexpr std::optional<Address> checked_sub(std::uint64_t count) const {
        if (count > value_) return std::nullopt;
        return Address{value_ - count};
    }
    [[nodiscard]] constexpr OverflowingAddress<Space> overflowing_add(std::uint64_t count) const;
    [[nodiscard]] constexpr OverflowingAddress<Space> overflowing_sub(std::uint64_t count) const;
    [[nodiscard]] constexpr Address saturating_add(std::uint64_t count) const {
        return checked_add(count).value_or(max());
    }
    [[nodiscard]] constexpr Address saturating_sub(std::uint64_t count) const {
        return checked_sub(count).value_or(Address{});
    }

    /// How far this address is above `base`; nothing when it is below.
    [[nodiscard]] constexpr std::optional<std::uint64_t> checked_offset_from(Address base) const {
        if (value_ < base.value_) return std::nullopt;
        return value_ - base.value_;
    }

    [[nodiscard]] constexpr bool is_aligned(std::uint64_t alignment) const {
        return is_power_of_two(alignment) && (value_ & (alignment - 1)) == 0;
    }
    [[nodiscard]] constexpr std::optional<Address> checked_align_down(std::uint64_t alignment) const {
        if (!is_power_of_two(alignment)) return std::nullopt;
        return Address{value_ & ~(alignment - 1)};
    }
    [[nodiscard]] constexpr std::optional<Address> checked_align_up(std::uint64_t alignment) const {
        if (!is_power_of_two(alignment)) return std::nullopt;
        const auto raised = checked_add(alignment - 1);
        if (!raised) return std::nullopt;
        return Address{raised->value_ & ~(alignment - 1)};
    }
    /// The bits of the address that `bits` has, too.
    [[nodiscard]] constexpr std::uint64_t masked(std::uint64_t bits) const { return value_ & bits; }

    friend constexpr auto operator<=>(Address, Address) = default;

private:
    /// std::has_single_bit, without the call to count bits that a processor without popcnt makes of it.
    [[nodiscard]] static constexpr bool is_power_of_two(std::uint64_t number) {
        return number != 0 && (number & (number - 1)) == 0;
    }

    std::uint64_t value_ = 0;
};

/// What overflowing arithmetic gives: the address modulo 2^64, and whether that was needed.
template <typename Space>
struct OverflowingAddress {
    Address<Space> address;
    bool has_overflowed = false;
    friend constexpr bool operator==(OverflowingAddress, OverflowingAddress) = default;
};

template <typename Space>
constexpr OverflowingAddress<Space> Address<Space>::overflowing_add(std::uint64_t count) const {
    const std::uint64_t sum = value_ + count;
    return {Address{sum}, sum < value_};
}

template <typename Space>
constexpr OverflowingAddress<Space> Address<Space>::overflowing_sub(std::uint64_t count) const {
    return {Address{value_ - count}, count > value_};
}

struct GuestPhysicalSpace;
struct IoVirtualSpace;
struct HostVirtualSpace;

using GuestAddress = Address<GuestPhysicalSpace>;
using IoAddress = Address<IoVirtualSpace>;
using HostAddress = Address<HostVirtualSpace>;

}  // namespace guestmem
