// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

/// The instructions of guarded.hpp on x86-64, each with its line in the fault table. Included by guarded.hpp only.
///
/// Concepts: GM_FAULT_ENTRY_("1") says that a fault of the instruction at label 1 goes on at the C++ label `bad`.
/// A line is two 32-bit distances from itself, so the table is read-only and needs no relocation when an object is
/// loaded. Section flags: "a" allocated, "R" kept by --gc-sections although nothing refers to it, "?" member of the
/// group that the code is in, so that the linker drops it together with a copy of an inline function.
/// Contract: x86 loads have acquire and stores release semantics; here they differ for the compiler only. A
/// sequentially consistent store is an xchg. Everything with the prefix lock is sequentially consistent.
/// Threads: any.

#define GM_FAULT_ENTRY_TO_(label, recovery)    \
    ".pushsection gm_ex, \"aR?\", @progbits\n" \
    ".balign 4\n"                              \
    ".long " label                             \
    "b - .\n"                                  \
    ".long " recovery                          \
    " - .\n"                                   \
    ".popsection\n"
#define GM_FAULT_ENTRY_(label) GM_FAULT_ENTRY_TO_(label, "%l[bad]")

// g++ 12 may spill over the output register of an asm goto before the next statement (its bug 113921); an empty
// asm behind it keeps the value.
#define GM_KEEP_OUTPUT_() asm("")

namespace guestmem::detail {

/// Guest memory as an operand: of any alignment, and aliasing everything.
template <typename T>
struct [[gnu::packed, gnu::may_alias]] GuestPiece {
    T value;
};
template <typename T>
[[gnu::always_inline]] inline const GuestPiece<T>& piece(const std::byte* at) {
    return *reinterpret_cast<const GuestPiece<T>*>(at);
}

template <typename T>
[[gnu::always_inline]] inline bool guarded_load(const std::byte* from, T& value) {
    T loaded{};
    if constexpr (sizeof(T) == 1) {
        // movb would wait for the old upper part of the register.
        asm volatile inline goto("1: movzbl %[at], %k[loaded]\n" GM_FAULT_ENTRY_("1")
                                 : [loaded] "=r"(loaded)
                                 : [at] "m"(piece<T>(from).value)
                                 :
                                 : bad);
    } else if constexpr (sizeof(T) == 2) {
        asm volatile inline goto("1: movzwl %[at], %k[loaded]\n" GM_FAULT_ENTRY_("1")
                                 : [loaded] "=r"(loaded)
                                 : [at] "m"(piece<T>(from).value)
                                 :
                                 : bad);
    } else {
        asm volatile inline goto("1: mov %[at], %[loaded]\n" GM_FAULT_ENTRY_("1")
                                 : [loaded] "=r"(loaded)
                                 : [at] "m"(piece<T>(from).value)
                                 :
                                 : bad);
    }
    GM_KEEP_OUTPUT_();
    value = loaded;
    return true;
bad:
    return false;
}

template <typename T>
[[gnu::always_inline]] inline bool guarded_load_acquire(const std::byte* from, T& value) {
    const bool is_good = guarded_load(from, value);
    asm volatile("" ::: "memory");
    return is_good;
}

template <typename T>
[[gnu::always_inline]] inline bool guarded_store(std::byte* to, T value) {
    asm volatile inline goto("1: mov %[value], %[at]\n" GM_FAULT_ENTRY_("1")
                             :
                             : [value] "r"(value), [at] "m"(piece<T>(to).value)
                             : "memory"
                             : bad);
    return true;
bad:
    return false;
}

template <typename T>
[[gnu::always_inline]] inline bool guarded_store_release(std::byte* to, T value) {
    return guarded_store(to, value);
}

template <typename T>
[[gnu::always_inline]] inline bool guarded_exchange(std::byte* at, T desired, T& previous) {
    T swapped = desired;
    asm volatile inline goto("1: xchg %[swapped], %[at]\n" GM_FAULT_ENTRY_("1")
                             : [swapped] "+r"(swapped)
                             : [at] "m"(piece<T>(at).value)
                             : "memory"
                             : bad);
    GM_KEEP_OUTPUT_();
    previous = swapped;
    return true;
bad:
    return false;
}

template <typename T>
[[gnu::always_inline]] inline bool guarded_store_seq_cst(std::byte* to, T value) {
    T previous{};
    return guarded_exchange(to, value, previous);
}

template <typename T>
[[gnu::always_inline]] inline bool guarded_compare_exchange(std::byte* at, T& expected, T desired,
                                                            bool& is_exchanged) {
    T found = expected;
    asm volatile inline goto("1: lock cmpxchg %[desired], %[at]\n" GM_FAULT_ENTRY_("1")
                             : [found] "+a"(found)
                             : [desired] "r"(desired), [at] "m"(piece<T>(at).value)
                             : "memory", "cc"
                             : bad);
    GM_KEEP_OUTPUT_();
    is_exchanged = found == expected;
    expected = found;
    return true;
bad:
    return false;
}

template <typename T>
[[gnu::always_inline]] inline bool guarded_fetch_add(std::byte* at, T operand, T& previous) {
    T added = operand;
    asm volatile inline goto("1: lock xadd %[added], %[at]\n" GM_FAULT_ENTRY_("1")
                             : [added] "+r"(added)
                             : [at] "m"(piece<T>(at).value)
                             : "memory", "cc"
                             : bad);
    GM_KEEP_OUTPUT_();
    previous = added;
    return true;
bad:
    return false;
}

/// x86 has no fetch-or that tells what was there: load, then compare-exchange until nobody came between.
template <typename T, typename Change>
[[gnu::always_inline]] inline bool guarded_change(std::byte* at, T& previous, Change change) {
    T found{};
    if (!guarded_load(at, found)) return false;
    for (bool is_exchanged = false; !is_exchanged;)
        if (!guarded_compare_exchange(at, found, change(found), is_exchanged)) return false;
    previous = found;
    return true;
}
template <typename T>
[[gnu::always_inline]] inline bool guarded_fetch_or(std::byte* at, T operand, T& previous) {
    return guarded_change(at, previous, [operand](T found) { return static_cast<T>(found | operand); });
}
template <typename T>
[[gnu::always_inline]] inline bool guarded_fetch_and(std::byte* at, T operand, T& previous) {
    return guarded_change(at, previous, [operand](T found) { return static_cast<T>(found & operand); });
}

}  // namespace guestmem::detail
