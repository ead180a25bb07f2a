// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

/// The accesses of guarded.hpp where there is no fault table: plain atomics, which always say true. Included by
/// guarded.hpp only.
///
/// Contract: a page that is gone raises its signal; install_fault_guard() says unsupported. Relaxed accesses take
/// any address: an unaligned one is made of bytes.
/// Threads: any.

namespace guestmem::detail {

template <typename T>
bool is_whole(const std::byte* at) {
    return reinterpret_cast<std::uintptr_t>(at) % sizeof(T) == 0;
}

template <typename T>
bool guarded_load(const std::byte* from, T& value) {
    if (is_whole<T>(from)) {
        value = __atomic_load_n(reinterpret_cast<const T*>(from), __ATOMIC_RELAXED);
    } else {
        for (std::size_t i = 0; i < sizeof(T); ++i)
            reinterpret_cast<std::byte*>(&value)[i] = __atomic_load_n(from + i, __ATOMIC_RELAXED);
    }
    return true;
}
template <typename T>
bool guarded_load_acquire(const std::byte* from, T& value) {
    value = __atomic_load_n(reinterpret_cast<const T*>(from), __ATOMIC_SEQ_CST);
    return true;
}
template <typename T>
bool guarded_store(std::byte* to, T value) {
    if (is_whole<T>(to)) {
        __atomic_store_n(reinterpret_cast<T*>(to), value, __ATOMIC_RELAXED);
    } else {
        for (std::size_t i = 0; i < sizeof(T); ++i)
            __atomic_store_n(to + i, reinterpret_cast<const std::byte*>(&value)[i], __ATOMIC_RELAXED);
    }
    asm volatile("" ::: "memory");
    return true;
}
template <typename T>
bool guarded_store_release(std::byte* to, T value) {
    __atomic_store_n(reinterpret_cast<T*>(to), value, __ATOMIC_RELEASE);
    return true;
}
template <typename T>
bool guarded_store_seq_cst(std::byte* to, T value) {
    __atomic_store_n(reinterpret_cast<T*>(to), value, __ATOMIC_SEQ_CST);
    return true;
}
template <typename T>
bool guarded_exchange(std::byte* at, T desired, T& previous) {
    previous = __atomic_exchange_n(reinterpret_cast<T*>(at), desired, __ATOMIC_SEQ_CST);
    return true;
}
template <typename T>
bool guarded_compare_exchange(std::byte* at, T& expected, T desired, bool& is_exchanged) {
    is_exchanged = __atomic_compare_exchange_n(reinterpret_cast<T*>(at), &expected, desired, false,
                                               __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return true;
}
template <typename T>
bool guarded_fetch_add(std::byte* at, T operand, T& previous) {
    previous = __atomic_fetch_add(reinterpret_cast<T*>(at), operand, __ATOMIC_SEQ_CST);
    return true;
}
template <typename T>
bool guarded_fetch_or(std::byte* at, T operand, T& previous) {
    previous = __atomic_fetch_or(reinterpret_cast<T*>(at), operand, __ATOMIC_SEQ_CST);
    return true;
}
template <typename T>
bool guarded_fetch_and(std::byte* at, T operand, T& previous) {
    previous = __atomic_fetch_and(reinterpret_cast<T*>(at), operand, __ATOMIC_SEQ_CST);
    return true;
}

}  // namespace guestmem::detail
