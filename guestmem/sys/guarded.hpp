// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#if defined(__x86_64__)
#include "guestmem/sys/guarded_x86_64.hpp"
#elif defined(__aarch64__)
#include "guestmem/sys/guarded_arm64.hpp"
#else
#include "guestmem/sys/guarded_plain.hpp"
#endif

/// Accesses to memory that may be gone: a missing page is a false, not a signal.
///
/// Concepts: guest memory is a mapping of something that others own. When its file is cut short, or a page is
/// protected, an access raises SIGBUS or SIGSEGV. Each access here is one instruction with a line in a fault
/// table: "when this instruction faults, go there". The handler of fault_guard.hpp looks the line up; without it
/// the signal takes its usual way. The good path pays nothing: no call, no flag, no saved context.
/// Contract: the functions are atomic for addresses that are a multiple of the size. try_load and try_store of
/// memory_order_relaxed take any address; all else asks for natural alignment. On false nothing was stored, and
/// `value`, `previous` and `expected` are as before. A relaxed load lets the compiler keep the caller's other
/// variables in registers; all else is a compiler barrier: what stands before a try_store in the source is before
/// it, what stands behind it is behind. A compare-exchange is strong; its order holds for both outcomes.
/// Copies of at most 64 bytes access each naturally aligned piece of 8, 4 or 2 bytes on the guest's side exactly
/// once and whole, in address order: fields of a small structure do not tear, nothing is read twice. Larger
/// copies may tear anything and have no order. Either way the count is exact.
/// Threads: any; a thread that blocks SIGBUS or SIGSEGV is killed by a fault (prepare_thread_for_guest_memory()).
/// Limits: x86-64 and arm64. Elsewhere the same functions are plain atomics, and no guard can be installed.
/// Cost: a good access is within 0.2 ns of a plain one; a fault costs 2 to 4 us.
/// Example:
///     std::uint32_t flags = 0;
///     if (!try_load(mapping.bytes().data() + 16, flags)) return AccessReason::fault;
/// Known holes: sanitizers do not see these accesses: no race and no overflow is reported on the guest's side, nor
/// on the other side of a copy of more than 64 bytes. (ThreadSanitizer is told about acquire and release.)
/// try_fetch_or and try_fetch_and repeat while others change the same word, as every such loop does.

// A ThreadSanitizer build is told what acquires and releases, for the sake of the memory that these order.
#if defined(__SANITIZE_THREAD__)
#define GM_TELL_THREAD_SANITIZER_
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define GM_TELL_THREAD_SANITIZER_
#endif
#endif

namespace guestmem {
namespace detail {
#ifdef GM_TELL_THREAD_SANITIZER_
// NOLINTBEGIN(bugprone-reserved-identifier): names of the sanitizer
extern "C" void __tsan_acquire(void* at);
extern "C" void __tsan_release(void* at);
// NOLINTEND(bugprone-reserved-identifier)
inline void tell_acquired(const std::byte* at) { __tsan_acquire(const_cast<std::byte*>(at)); }
inline void tell_releasing(const std::byte* at) { __tsan_release(const_cast<std::byte*>(at)); }
#undef GM_TELL_THREAD_SANITIZER_
#else
[[gnu::always_inline]] inline void tell_acquired(const std::byte*) {}
[[gnu::always_inline]] inline void tell_releasing(const std::byte*) {}
#endif

constexpr bool is_acquiring(std::memory_order order) {
    return order != std::memory_order_relaxed && order != std::memory_order_release;
}
constexpr bool is_releasing(std::memory_order order) {
    return order == std::memory_order_release || order == std::memory_order_acq_rel ||
           order == std::memory_order_seq_cst;
}

/// A change of memory with what the sanitizer has to know about its order. Every change acquires and releases.
template <typename Change>
[[gnu::always_inline]] inline bool change_in_order(std::byte* at, std::memory_order order, Change change) {
    if (is_releasing(order)) tell_releasing(at);
    const bool is_good = change();
    if (is_good && is_acquiring(order)) tell_acquired(at);
    return is_good;
}
}  // namespace detail

/// What one access can move.
template <typename T>
concept GuardedInteger = std::unsigned_integral<T> && !std::same_as<std::remove_cv_t<T>, bool> &&
                         (sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);

/// Below or at this many bytes a copy keeps aligned pieces whole.
inline constexpr std::size_t max_untorn_copy_bytes = 64;

/// False when the host has no readable page there.
template <GuardedInteger T>
[[nodiscard, gnu::always_inline]] inline bool try_load(const std::byte* from, T& value,
                                                       std::memory_order order = std::memory_order_relaxed) {
    if (order == std::memory_order_relaxed) return detail::guarded_load(from, value);
    const bool is_good = detail::guarded_load_acquire(from, value);
    if (is_good) detail::tell_acquired(from);
    return is_good;
}

/// False when the host has no writable page there.
template <GuardedInteger T>
[[nodiscard, gnu::always_inline]] inline bool try_store(std::byte* to, T value,
                                                        std::memory_order order = std::memory_order_relaxed) {
    if (order == std::memory_order_relaxed) return detail::guarded_store(to, value);
    detail::tell_releasing(to);
    return order == std::memory_order_seq_cst ? detail::guarded_store_seq_cst(to, value)
                                              : detail::guarded_store_release(to, value);
}

/// Stores `desired`; `previous` is what was there. As for all changes: the order is at least what is asked for.
template <GuardedInteger T>
[[nodiscard, gnu::always_inline]] inline bool try_exchange(
    std::byte* at, T desired, T& previous, std::memory_order order = std::memory_order_seq_cst) {
    return detail::change_in_order(at, order, [&]() __attribute__((always_inline)) {
        return detail::guarded_exchange(at, desired, previous);
    });
}

/// Stores `desired` if `expected` is there; else `expected` becomes what is.
template <GuardedInteger T>
[[nodiscard, gnu::always_inline]] inline bool try_compare_exchange(
    std::byte* at, T& expected, T desired, bool& is_exchanged,
    std::memory_order order = std::memory_order_seq_cst) {
    return detail::change_in_order(at, order, [&]() __attribute__((always_inline)) {
        return detail::guarded_compare_exchange(at, expected, desired, is_exchanged);
    });
}

/// Adds, modulo 2^bits; `previous` is what was there.
template <GuardedInteger T>
[[nodiscard, gnu::always_inline]] inline bool try_fetch_add(
    std::byte* at, T operand, T& previous, std::memory_order order = std::memory_order_seq_cst) {
    return detail::change_in_order(at, order, [&]() __attribute__((always_inline)) {
        return detail::guarded_fetch_add(at, operand, previous);
    });
}
template <GuardedInteger T>
[[nodiscard, gnu::always_inline]] inline bool try_fetch_or(
    std::byte* at, T operand, T& previous, std::memory_order order = std::memory_order_seq_cst) {
    return detail::change_in_order(at, order, [&]() __attribute__((always_inline)) {
        return detail::guarded_fetch_or(at, operand, previous);
    });
}
template <GuardedInteger T>
[[nodiscard, gnu::always_inline]] inline bool try_fetch_and(
    std::byte* at, T operand, T& previous, std::memory_order order = std::memory_order_seq_cst) {
    return detail::change_in_order(at, order, [&]() __attribute__((always_inline)) {
        return detail::guarded_fetch_and(at, operand, previous);
    });
}

/// Copies out of guest memory; the number of bytes done, from the low address up. `to` is our own memory: a fault
/// there takes its usual way.
[[nodiscard]] std::size_t copy_from_guest(std::byte* to, const std::byte* from_guest, std::size_t count);
/// Copies into guest memory; the number of bytes done, from the low address up.
[[nodiscard]] std::size_t copy_to_guest(std::byte* to_guest, const std::byte* from, std::size_t count);
/// Copies inside guest memory, which may overlap; the number of bytes done. They are the lowest ones, but for
/// from < to < from + count, where the copy goes down: then they are the highest ones.
[[nodiscard]] std::size_t copy_within_guest(std::byte* to, const std::byte* from, std::size_t count);
/// Sets all bytes to `value`; the number of bytes done, from the low address up.
[[nodiscard]] std::size_t fill_guest(std::byte* to, std::byte value, std::size_t count);

}  // namespace guestmem
