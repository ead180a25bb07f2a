// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

/// What may be copied out of guest memory and into it as an object, and integers of a stated byte order.
///
/// Concepts: a guest writes any bytes it likes, so an object is a GuestObject only when any bytes make a valid one,
/// and when writing it shows the guest nothing but its value: no pointers, no padding, no bool.
/// Contract: `LittleEndian<T>` and `BigEndian<T>` are plain bytes without alignment, for fields of structs that a
/// guest shares; they convert to and from T by name only. A struct that has floating-point members, or that is
/// known to be right for another reason, joins by specializing `is_guest_object`.
/// Threads: any.
/// Known holes: the compiler cannot see a bool, an enum or a pointer inside of a struct: who declares one there has to
/// use an integer instead.
/// Example:
///     struct Descriptor {                // virtio 1.2, 2.7.5
///         Le64 address;
///         Le32 size;
///         Le16 flags;
///         Le16 next;
///     };
///     static_assert(GuestObject<Descriptor>);

namespace guestmem {

/// The value whose bytes, in this machine's order, are those of `value` in `order`.
template <std::endian order, std::unsigned_integral T>
[[nodiscard]] constexpr T in_order(T value) {
    return order == std::endian::native ? value : std::byteswap(value);
}

template <std::unsigned_integral T, std::endian order>
class EndianInteger {
public:
    EndianInteger() = default;
    explicit constexpr EndianInteger(T value) : bytes_(std::bit_cast<Bytes>(in_order<order>(value))) {}

    [[nodiscard]] constexpr T value() const { return in_order<order>(std::bit_cast<T>(bytes_)); }

    friend constexpr bool operator==(EndianInteger a, EndianInteger b) { return a.value() == b.value(); }

private:
    struct Bytes {
        std::byte bytes[sizeof(T)];
    };

    Bytes bytes_;
};

template <typename T>
using LittleEndian = EndianInteger<T, std::endian::little>;
template <typename T>
using BigEndian = EndianInteger<T, std::endian::big>;

using Le16 = LittleEndian<std::uint16_t>;
using Le32 = LittleEndian<std::uint32_t>;
using Le64 = LittleEndian<std::uint64_t>;
using Be16 = BigEndian<std::uint16_t>;
using Be32 = BigEndian<std::uint32_t>;
using Be64 = BigEndian<std::uint64_t>;

template <typename T>
inline constexpr bool is_guest_object =
    std::has_unique_object_representations_v<T> || std::same_as<T, float> || std::same_as<T, double>;

template <typename T>
concept GuestObject =
    is_guest_object<T> && std::is_trivially_copyable_v<T> && std::is_trivially_default_constructible_v<T> &&
    !std::is_pointer_v<T> && !std::is_member_pointer_v<T> && !std::same_as<std::remove_cv_t<T>, bool> &&
    !std::is_reference_v<T> && !std::is_const_v<T> && !std::is_array_v<T>;

/// What one access carries whole: an integer of at most 8 bytes.
template <typename T>
concept GuestInteger = std::integral<T> && !std::same_as<T, bool> && sizeof(T) <= 8;

/// An unsigned integer as large as T, for T of 1, 2, 4 or 8 bytes.
template <std::size_t size>
struct UnsignedOfSize;
template <>
struct UnsignedOfSize<1> {
    using Type = std::uint8_t;
};
template <>
struct UnsignedOfSize<2> {
    using Type = std::uint16_t;
};
template <>
struct UnsignedOfSize<4> {
    using Type = std::uint32_t;
};
template <>
struct UnsignedOfSize<8> {
    using Type = std::uint64_t;
};
template <typename T>
inline constexpr bool has_word_size = sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8;
template <typename T>
using WordOf = typename UnsignedOfSize<sizeof(T)>::Type;

}  // namespace guestmem
