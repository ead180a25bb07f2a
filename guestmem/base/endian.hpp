// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstring>
#include <span>

/// Little-endian integers in byte buffers, for wire formats and for fields in shared memory.
///
/// Contract: the span's extent is part of the type, so a short buffer does not compile.
/// Threads: any. The bytes are copied, never read in place.

namespace guestmem {

/// Reverses the bytes when the machine is big-endian; the same function both ways.
template <std::integral T>
[[nodiscard]] constexpr T swap_unless_little(T value) {
    if constexpr (std::endian::native == std::endian::little) {
        return value;
    } else {
        return std::byteswap(value);
    }
}

template <std::integral T>
[[nodiscard]] T load_little(std::span<const std::byte, sizeof(T)> bytes) {
    T value;
    std::memcpy(&value, bytes.data(), sizeof value);
    return swap_unless_little(value);
}

template <std::integral T>
void store_little(std::span<std::byte, sizeof(T)> bytes, T value) {
    value = swap_unless_little(value);
    std::memcpy(bytes.data(), &value, sizeof value);
}

}  // namespace guestmem
