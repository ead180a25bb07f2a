// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

/// The instructions of guarded.hpp on arm64, each with its line in the fault table. Included by guarded.hpp only.
///
/// Concepts: as in guarded_x86_64.hpp. A change of memory is a loop of an exclusive load and an exclusive store,
/// both with a line of their own: a page that can be read but not written faults at the second.
/// Contract: loads are ldr, or ldar when they acquire; stores are str, or stlr when they release; changes acquire
/// and release whatever they are asked for. Exclusive, acquiring and releasing accesses want natural alignment.
/// Threads: any.

#define GM_FAULT_ENTRY_(label)                  \
    ".pushsection gm_ex, \"aR?\", %%progbits\n" \
    ".balign 4\n"                               \
    ".long " label                              \
    "b - .\n"                                   \
    ".long %l[bad] - .\n"                       \
    ".popsection\n"

// g++ 12 may spill over the output register of an asm goto before the next statement (its bug 113921); an empty
// asm behind it keeps the value.
#define GM_KEEP_OUTPUT_() asm("")

// Runs GM_STATEMENT(instruction suffix, register width) for the size of T.
#define GM_BY_SIZE_(statement)             \
    if constexpr (sizeof(T) == 1) {        \
        statement("b", "w");               \
    } else if constexpr (sizeof(T) == 2) { \
        statement("h", "w");               \
    } else if constexpr (sizeof(T) == 4) { \
        statement("", "w");                \
    } else {                               \
        statement("", "x");                \
    }

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
#define GM_LOAD_(suffix, width)                                                                  \
    asm volatile inline goto("1: ldr" suffix " %" width "[loaded], %[at]\n" GM_FAULT_ENTRY_("1") \
                             : [loaded] "=r"(loaded)                                             \
                             : [at] "Q"(piece<T>(from).value)                                    \
                             :                                                                   \
                             : bad)
    GM_BY_SIZE_(GM_LOAD_)
#undef GM_LOAD_
    GM_KEEP_OUTPUT_();
    value = loaded;
    return true;
bad:
    return false;
}

template <typename T>
[[gnu::always_inline]] inline bool guarded_load_acquire(const std::byte* from, T& value) {
    T loaded{};
#define GM_LOAD_(suffix, width)                                                                   \
    asm volatile inline goto("1: ldar" suffix " %" width "[loaded], %[at]\n" GM_FAULT_ENTRY_("1") \
                             : [loaded] "=r"(loaded)                                              \
                             : [at] "Q"(piece<T>(from).value)                                     \
                             : "memory"                                                           \
                             : bad)
    GM_BY_SIZE_(GM_LOAD_)
#undef GM_LOAD_
    GM_KEEP_OUTPUT_();
    value = loaded;
    return true;
bad:
    return false;
}

template <typename T>
[[gnu::always_inline]] inline bool guarded_store(std::byte* to, T value) {
#define GM_STORE_(suffix, width)                                                                \
    asm volatile inline goto("1: str" suffix " %" width "[value], %[at]\n" GM_FAULT_ENTRY_("1") \
                             :                                                                  \
                             : [value] "r"(value), [at] "Q"(piece<T>(to).value)                 \
                             : "memory"                                                         \
                             : bad)
    GM_BY_SIZE_(GM_STORE_)
#undef GM_STORE_
    return true;
bad:
    return false;
}

template <typename T>
[[gnu::always_inline]] inline bool guarded_store_release(std::byte* to, T value) {
#define GM_STORE_(suffix, width)                                                                 \
    asm volatile inline goto("1: stlr" suffix " %" width "[value], %[at]\n" GM_FAULT_ENTRY_("1") \
                             :                                                                   \
                             : [value] "r"(value), [at] "Q"(piece<T>(to).value)                  \
                             : "memory"                                                          \
                             : bad)
    GM_BY_SIZE_(GM_STORE_)
#undef GM_STORE_
    return true;
bad:
    return false;
}

template <typename T>
[[gnu::always_inline]] inline bool guarded_store_seq_cst(std::byte* to, T value) {
    return guarded_store_release(to, value);
}

template <typename T>
[[gnu::always_inline]] inline bool guarded_exchange(std::byte* at, T desired, T& previous) {
    T found{};
    std::uint32_t is_lost = 0;
#define GM_EXCHANGE_(suffix, width)                                                             \
    asm volatile inline goto("1: ldaxr" suffix " %" width                                       \
                             "[found], %[at]\n"                                                 \
                             "2: stlxr" suffix " %w[is_lost], %" width                          \
                             "[desired], %[at]\n"                                               \
                             "cbnz %w[is_lost], 1b\n" GM_FAULT_ENTRY_("1") GM_FAULT_ENTRY_("2") \
                             : [found] "=&r"(found), [is_lost] "=&r"(is_lost)                   \
                             : [desired] "r"(desired), [at] "Q"(piece<T>(at).value)             \
                             : "memory"                                                         \
                             : bad)
    GM_BY_SIZE_(GM_EXCHANGE_)
#undef GM_EXCHANGE_
    GM_KEEP_OUTPUT_();
    previous = found;
    return true;
bad:
    return false;
}

template <typename T>
[[gnu::always_inline]] inline bool guarded_compare_exchange(std::byte* at, T& expected, T desired,
                                                            bool& is_exchanged) {
    // The exclusive load fills the upper part of the register with zeros: whole registers are compared.
    std::uint64_t found = 0;
    const std::uint64_t wanted = expected;
    std::uint32_t is_lost = 0;
#define GM_EXCHANGE_(suffix, width)                                                                       \
    asm volatile inline goto("1: ldaxr" suffix " %" width                                                 \
                             "[found], %[at]\n"                                                           \
                             "cmp %x[found], %x[wanted]\n"                                                \
                             "b.ne 3f\n"                                                                  \
                             "2: stlxr" suffix " %w[is_lost], %" width                                    \
                             "[desired], %[at]\n"                                                         \
                             "cbnz %w[is_lost], 1b\n"                                                     \
                             "3:\n" GM_FAULT_ENTRY_("1") GM_FAULT_ENTRY_("2")                             \
                             : [found] "=&r"(found), [is_lost] "=&r"(is_lost)                             \
                             : [wanted] "r"(wanted), [desired] "r"(desired), [at] "Q"(piece<T>(at).value) \
                             : "memory", "cc"                                                             \
                             : bad)
    GM_BY_SIZE_(GM_EXCHANGE_)
#undef GM_EXCHANGE_
    GM_KEEP_OUTPUT_();
    is_exchanged = found == wanted;
    expected = static_cast<T>(found);
    return true;
bad:
    return false;
}

// found = memory; memory = found OPERATION operand.
#define GM_CHANGE_(operation, suffix, width)                                                            \
    asm volatile inline goto("1: ldaxr" suffix " %" width "[found], %[at]\n" operation                  \
                             " %x[changed], %x[found], %x[operand]\n"                                   \
                             "2: stlxr" suffix " %w[is_lost], %" width                                  \
                             "[changed], %[at]\n"                                                       \
                             "cbnz %w[is_lost], 1b\n" GM_FAULT_ENTRY_("1") GM_FAULT_ENTRY_("2")         \
                             : [found] "=&r"(found), [changed] "=&r"(changed), [is_lost] "=&r"(is_lost) \
                             : [operand] "r"(operand), [at] "Q"(piece<T>(at).value)                     \
                             : "memory"                                                                 \
                             : bad)
#define GM_ADD_(suffix, width) GM_CHANGE_("add", suffix, width)
#define GM_OR_(suffix, width) GM_CHANGE_("orr", suffix, width)
#define GM_AND_(suffix, width) GM_CHANGE_("and", suffix, width)
#define GM_DEFINE_CHANGE_(name, statement)                                           \
    template <typename T>                                                            \
    [[gnu::always_inline]] inline bool name(std::byte* at, T operand, T& previous) { \
        T found{};                                                                   \
        std::uint64_t changed = 0;                                                   \
        std::uint32_t is_lost = 0;                                                   \
        GM_BY_SIZE_(statement)                                                       \
        GM_KEEP_OUTPUT_();                                                           \
        previous = found;                                                            \
        return true;                                                                 \
    bad:                                                                             \
        return false;                                                                \
    }
GM_DEFINE_CHANGE_(guarded_fetch_add, GM_ADD_)
GM_DEFINE_CHANGE_(guarded_fetch_or, GM_OR_)
GM_DEFINE_CHANGE_(guarded_fetch_and, GM_AND_)
#undef GM_DEFINE_CHANGE_
#undef GM_AND_
#undef GM_OR_
#undef GM_ADD_
#undef GM_CHANGE_

}  // namespace guestmem::detail

#undef GM_BY_SIZE_
